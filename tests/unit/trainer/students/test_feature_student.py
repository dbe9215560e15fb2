"""The unrolled `feature` student against an explicit chain, and what surrounds it."""

from __future__ import annotations

from random import Random

import pytest
import torch
from torch import Tensor

from osd.drafters.feature import FeatureDrafter
from osd.kernels.reference.drafting.eagle3_net import Eagle3Net
from osd.kernels.reference.drafting.feature_net import FeatureNet
from osd.records.errors import WeightsRefusedError
from osd.records.outcome import Outcome
from osd.records.outcome_arrays import hidden_states
from osd.records.proposal import DraftBatch
from osd.records.query import SamplingParams
from tests.kit.backends import fastest
from tests.kit.trainer_fakes import HIDDEN_SIZE, VOCAB_TOKENS, feature_student, make_outcome, model_student, shared_rows
from trainer.examples.batches import _pad, make_batches
from trainer.examples.examples import make_examples
from trainer.losses.acceptance import chain_sums, position_acceptance
from trainer.losses.losses import LOSSES, slots_of
from trainer.students.feature_student import FeatureStudent


def _outcome() -> Outcome:
    return make_outcome(prompt_ids=(1, 2, 3, 4, 5, 6), output_ids=(7, 8, 9, 10, 11, 12, 13, 14))


def _naive_chain(net: FeatureNet | Eagle3Net, outcome: Outcome, start: int, depth: int) -> Tensor:
    """The feature of a chain's last entry: true hidden states up to entry `start`, then its own features, one by one.

    One entry at a time over a plain list of keys and values, softmax by hand.
    """
    tokens = torch.tensor(outcome.prompt_ids + outcome.output_ids)
    hidden_NH = hidden_states(outcome)
    assert hidden_NH is not None
    embedding_VH = shared_rows().embedding_VH
    keys: list[Tensor] = []
    values: list[Tensor] = []
    feature_H = torch.zeros(0)
    for entry in range(start + depth):
        state_H = hidden_NH[entry].float() if entry <= start else feature_H
        inputs = net.attention_inputs(
            embedding_VH[tokens[entry + 1]][None, None],
            state_H[None, None],
            *net.rotation(torch.tensor([[entry]]), torch.float32),
        )
        keys.append(inputs.key_BNTD[0, :, 0])
        values.append(inputs.value_BNTD[0, :, 0])
        seen = slice(max(0, entry + 1 - net.config.window_tokens), entry + 1)
        key_LND, value_LND = torch.stack(keys[seen]), torch.stack(values[seen])
        query_ND = inputs.query_BNTD[0, :, 0]
        scores_LN = (key_LND * query_ND).sum(2) / query_ND.shape[1] ** 0.5
        attended_ND = (scores_LN.softmax(0)[:, :, None] * value_LND).sum(0)
        feature_H = net.feature(inputs.residual_BTH, attended_ND.flatten()[None, None])[0, 0]
    return feature_H.detach()


@pytest.mark.parametrize("window_tokens", [2, 3, 8, 64])
@pytest.mark.parametrize("depths", [1, 2, 4])
def test_unrolled_features_equal_an_explicit_chain(depths: int, window_tokens: int) -> None:
    outcome = _outcome()
    student = feature_student(unroll_steps=depths, window_tokens=window_tokens)
    (example,) = make_examples(outcome, student.alignment, max_predicting=64)
    (batch,) = make_batches([example], 64)
    first_entry = example.first_position + batch.num_context
    for depth, feature_BQH in enumerate(student.features(batch), start=1):
        for column in range(depth - 1, batch.num_predicting):
            start = first_entry + column - (depth - 1)
            torch.testing.assert_close(
                feature_BQH[0, column].detach(), _naive_chain(student.net, outcome, start, depth), rtol=1e-4, atol=1e-4
            )


def test_the_serving_drafter_proposes_what_the_student_learnt() -> None:
    """After training to a fit, a greedy serving chain from the very same weights says the target's own tokens."""
    outcome = _outcome()
    student = feature_student(unroll_steps=3, window_tokens=64)
    batches = make_batches(list(make_examples(outcome, student.alignment, max_predicting=64)), 64)
    optimizer = torch.optim.AdamW(student.parameters(), 3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        terms = student.loss_terms(batches[0])
        torch.autograd.backward((terms.losses_N * terms.weights_N).mean())
        optimizer.step()
    sums = student.acceptance(batches[0])
    assert (sums.accepted_BD / sums.reached_BD).tolist() == [[1.0, 1.0, 1.0]]

    drafter = FeatureDrafter(
        student.net.config, shared_rows(), fastest(), num_slots=1, max_context_tokens=32, max_length=3
    )
    drafter.prepare(student.state(), 2)()
    tokens = outcome.prompt_ids + outcome.output_ids
    hidden_NH = hidden_states(outcome)
    assert hidden_NH is not None
    hidden_SLH = torch.zeros(1, 32, HIDDEN_SIZE)
    hidden_SLH[0, : len(hidden_NH)] = hidden_NH.float()
    tokens_SL = torch.zeros(1, 32, dtype=torch.long)
    tokens_SL[0, : len(tokens)] = torch.tensor(tokens)
    for num_tokens in range(len(outcome.prompt_ids), len(tokens) - 3):
        proposal = drafter.propose(
            DraftBatch(
                tokens_SL=tokens_SL,
                hidden_SLH=hidden_SLH,
                num_tokens=[num_tokens],
                lengths=[3],
                params=[SamplingParams(temperature=0.0)],
                generators=[Random()],
            )
        )
        assert tuple(proposal.token_ids_BK[0].tolist()) == tokens[num_tokens : num_tokens + 3]


@pytest.mark.parametrize("window_tokens", [8, 2])
def test_losses_have_one_term_per_position_and_depth_with_finite_gradients(window_tokens: int) -> None:
    """Also where padding is further from every real column than the window reaches."""
    student = feature_student(unroll_steps=3, window_tokens=window_tokens)
    outcomes = [_outcome(), make_outcome("short", output_ids=(4,)), make_outcome("r", prompt_ids=(1,))]
    examples = [e for outcome in outcomes for e in make_examples(outcome, student.alignment, max_predicting=64)]
    lengths = [example.num_predicting for example in examples]
    terms = [student.loss_terms(batch) for batch in make_batches(examples, 10_000)]
    assert sum(len(one.losses_N) for one in terms) == sum(max(n - d, 0) for n in lengths for d in range(3))
    torch.autograd.backward([one.losses_N.sum() for one in terms])
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in student.parameters())


def test_a_reduced_vocabulary_follows_the_traffic_without_touching_weights() -> None:
    student = feature_student(vocab_tokens=4)
    weights = {name: tensor for name, tensor in student.state().items() if name != "vocab_ids_R"}
    counts_V = torch.zeros(VOCAB_TOKENS)
    counts_V[[9, 11, 13]] = torch.tensor([3.0, 5.0, 1.0])
    student.refresh_vocab(counts_V)
    after = student.state()
    assert after.pop("vocab_ids_R").tolist() == [0, 9, 11, 13]
    assert all(torch.equal(after[name], tensor) for name, tensor in weights.items())
    batch = make_batches(
        list(make_examples(make_outcome(output_ids=(9, 11, 13, 20)), student.alignment, max_predicting=64)), 64
    )[0]
    fresh = student.twin()
    fresh.load_state(student.state())
    assert torch.equal(student.loss_terms(batch).losses_N, fresh.loss_terms(batch).losses_N)
    sums = student.acceptance(batch)
    assert float(sums.reached_BD[0, 0]) == 4
    assert float(sums.accepted_BD[0, 0]) <= 3  # token 20 cannot be said


def test_what_traffic_has_put_into_a_vocabulary_can_count_more() -> None:
    student = feature_student(vocab_tokens=4)
    first_V, second_V = torch.zeros(VOCAB_TOKENS), torch.zeros(VOCAB_TOKENS)
    first_V[[9, 11, 13, 15]] = 1.0
    second_V[[16, 17, 18, 19]] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    student.refresh_vocab(first_V, seen_before=16.0)  # of a new drafter's low ids nothing was seen
    assert student.state()["vocab_ids_R"].tolist() == [9, 11, 13, 15]
    student.refresh_vocab(second_V, seen_before=2.5)
    assert student.state()["vocab_ids_R"].tolist() == [9, 11, 18, 19]


def test_a_twin_shares_nothing_that_is_trained() -> None:
    for student in (feature_student(), model_student()):
        twin = student.twin()
        twin.load_state(student.state())
        with torch.no_grad():
            student.parameters()[0].add_(1.0)
        name = next(iter(student.state()))
        assert not any(torch.equal(a, b) for a, b in [(student.parameters()[0], twin.parameters()[0])]), name


def test_foreign_or_spoilt_weights_are_refused_and_change_nothing() -> None:
    student: FeatureStudent = feature_student()
    before = student.state()
    spoilt = {**before, "fuse.weight": before["fuse.weight"] * float("nan")}
    for state in (spoilt, {"other": torch.zeros(1)}, feature_student(vocab_tokens=4).state()):
        with pytest.raises(WeightsRefusedError):
            student.load_state(state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state().items())


def test_mixed_precision_stays_close_to_float32() -> None:
    student = feature_student(unroll_steps=2)
    mixed = FeatureStudent(student.net, shared_rows(), loss=student._loss, unroll_steps=2, compute_dtype=torch.bfloat16)
    (batch,) = make_batches(list(make_examples(_outcome(), student.alignment, max_predicting=64)), 64)
    exact, rough = student.loss_terms(batch), mixed.loss_terms(batch)
    torch.testing.assert_close(exact.losses_N, rough.losses_N, rtol=0.1, atol=0.1)
    torch.autograd.backward(rough.losses_N.sum())
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in student.parameters())


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_acceptance_computed_where_chains_reach_equals_that_of_all_columns(temperature: float) -> None:
    student = feature_student(unroll_steps=3)
    outcomes = [
        make_outcome(f"r-{n}", output_ids=[(3 * n + s) % 12 for s in range(5 + 3 * n)], temperature=temperature)
        for n in range(4)
    ]
    examples = [e for outcome in outcomes for e in make_examples(outcome, student.alignment, max_predicting=64)]
    optimizer = torch.optim.AdamW(student.parameters(), 5e-3)
    batch = _pad(examples)
    for _ in range(12):  # until some proposals are accepted and others are not
        optimizer.zero_grad()
        torch.autograd.backward(student.loss_terms(batch).losses_N.sum())
        optimizer.step()
    teacher = batch.teacher(torch.ones_like(batch.predicting_BQ))
    everywhere = [
        position_acceptance(
            student._logits(feature_BQH.detach().flatten(0, 1)),
            teacher,
            student.net.vocab_ids_R,
            slots_of(teacher.ids_NK, student._slot_V, VOCAB_TOKENS),
            torch.full((batch.predicting_BQ.numel(),), temperature),
        ).view(batch.predicting_BQ.shape)
        for feature_BQH in student.features(batch)
    ]
    found, expected = student.acceptance(batch), chain_sums(everywhere, batch.predicting_BQ)
    assert 0 < float(expected.reached_BD[:, 2].sum()) < float(expected.reached_BD[:, 0].sum())
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(("window_tokens", "judged", "trained"), [(8, 7, 7), (200, 199, 64)])
def test_an_example_to_train_on_reads_a_shorter_context_than_one_to_judge_by(
    window_tokens: int, judged: int, trained: int
) -> None:
    alignment = feature_student(window_tokens=window_tokens).alignment
    outcome = make_outcome(prompt_ids=[n % 12 for n in range(300)], output_ids=(4, 5, 6))
    for own, num_context in ((alignment, judged), (alignment.for_training(), trained)):
        (example,) = make_examples(outcome, own, max_predicting=64)
        assert example.num_columns - example.num_predicting == num_context


def test_every_weight_learns_though_context_has_no_gradient() -> None:
    student = FeatureStudent(
        feature_student().net, shared_rows(), loss=LOSSES["forward_kl"], unroll_steps=2, compute_dtype=torch.bfloat16
    )
    (batch,) = make_batches(list(make_examples(_outcome(), student.alignment, max_predicting=64)), 64)
    assert batch.num_context
    torch.autograd.backward(student.loss_terms(batch).losses_N.sum())
    assert all(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in student.parameters())
