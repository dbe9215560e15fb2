"""Training on rejected tokens: the student's branches against a serving chain that reads the drafted tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor

from osd.config.trainer import TrainerConfig
from osd.kernels.reference.drafting.feature_net import FeatureNet
from osd.records.outcome import ACCEPTED, BONUS, RECOVERED, Outcome, Round
from osd.records.outcome_arrays import check_shapes, hidden_states, pack_ids, pack_top_k
from tests.kit.trainer_fakes import VOCAB_TOKENS, feature_student, make_outcome, plain_random, shared_rows
from trainer.examples.batches import Batch, make_batches
from trainer.examples.branches import branches_of
from trainer.examples.examples import make_examples, unfit_because
from trainer.losses.losses import LOSSES, Teacher, coarsen
from trainer.students.feature_student import FeatureStudent

PROMPT = (1, 2, 3, 4, 5, 6)
TOP_K = 5
DRAFTED: Sequence[tuple[int, tuple[int, ...]]] = [
    (0, (20, 21, 22, 23)),
    (2, (9, 8, 19, 18)),
    (1, (11, 17)),
    (4, (1,) * 4),
]
"""By round, how many tokens were accepted and what was drafted; of the last round all were accepted."""


def _outcome(
    rounds: Sequence[tuple[int, tuple[int, ...]]] = DRAFTED, prompt_ids: Sequence[int] = PROMPT, **values: Any
) -> Outcome:
    """An outcome of these rounds; the target's distribution after a rejected token depends on its number."""
    output_ids, kinds = [7], [BONUS]
    for accepted, drafted in rounds:
        whole = accepted == len(drafted)
        output_ids += [*drafted[:accepted], 2 if whole else 3]
        kinds += [*[ACCEPTED] * accepted, BONUS if whole else RECOVERED]
    rejected = [token for accepted, drafted in rounds for token in drafted[accepted:]]
    generator = torch.Generator().manual_seed(3)
    top = torch.randn(len(rejected), VOCAB_TOKENS, generator=generator).mul(2).log_softmax(1).topk(TOP_K, dim=1)
    top_ids, top_logprobs, _ = pack_top_k(top.indices, top.values)
    recorded = {
        "rounds": tuple(Round(1, len(drafted), accepted, "feature") for accepted, drafted in rounds),
        "rejected_top_k": TOP_K,
        "rejected_ids": pack_ids(rejected),
        "rejected_top_ids": top_ids,
        "rejected_top_logprobs": top_logprobs,
    }
    plain = make_outcome(prompt_ids=prompt_ids, output_ids=output_ids, kinds=bytes(kinds))
    outcome = msgspec.structs.replace(plain, **{**recorded, **values})
    check_shapes(outcome)
    return outcome


def _student(depths: int = 4, window_tokens: int = 64, loss: str = "reverse_kl") -> FeatureStudent:
    student = feature_student(unroll_steps=depths, window_tokens=window_tokens, rejected_loss=loss)
    plain_random(student)
    return student


def _batches(student: FeatureStudent, *outcomes: Outcome, max_predicting: int = 64) -> list[Batch]:
    examples = [e for one in outcomes for e in make_examples(one, student.alignment, max_predicting=max_predicting)]
    return make_batches(examples, 10_000)


def _chain_over(net: FeatureNet, known: Sequence[int], hidden_NH: Tensor, drafted: Sequence[int]) -> Tensor:
    """The feature of a serving chain that has read these drafted tokens: one entry at a time, softmax by hand.

    Entry t reads the token at t + 1, and the target's hidden state at t or, beyond those, the feature of entry t - 1.
    """
    embedding_VH, tokens = shared_rows().embedding_VH, [*known, *drafted]
    keys: list[Tensor] = []
    values: list[Tensor] = []
    feature_H = torch.zeros(0)
    for entry in range(len(tokens) - 1):
        state_H = hidden_NH[entry].float() if entry < len(known) - 1 else feature_H
        inputs = net.attention_inputs(
            embedding_VH[tokens[entry + 1]][None, None],
            state_H[None, None],
            *net.rotation(torch.tensor([[entry]]), torch.float32),
        )
        keys.append(inputs.key_BNTD[0, :, 0])
        values.append(inputs.value_BNTD[0, :, 0])
        seen = slice(max(0, entry + 1 - net.config.window_tokens), entry + 1)
        query_ND = inputs.query_BNTD[0, :, 0]
        scores_LN = (torch.stack(keys[seen]) * query_ND).sum(2) / query_ND.shape[1] ** 0.5
        attended_ND = (scores_LN.softmax(0)[:, :, None] * torch.stack(values[seen])).sum(0)
        feature_H = net.feature(inputs.residual_BTH, attended_ND.flatten()[None, None])[0, 0]
    return feature_H


def _expected(student: FeatureStudent, outcome: Outcome, depths: int) -> list[tuple[int, Tensor]]:
    """By definition, not by trainer code: depth and loss of everything that was drafted after a rejection."""
    hidden_NH = hidden_states(outcome)
    assert hidden_NH is not None and isinstance(student.net, FeatureNet)
    ids_R = np.frombuffer(outcome.rejected_ids, "<i4").tolist()
    top_ids_RK = torch.from_numpy(np.frombuffer(outcome.rejected_top_ids, "<i4").reshape(-1, TOP_K).astype("int64"))
    log_probs_RK = torch.from_numpy(np.frombuffer(outcome.rejected_top_logprobs, "<f2").reshape(-1, TOP_K).copy())
    tokens, num_known, place = outcome.prompt_ids + outcome.output_ids, len(outcome.prompt_ids) + 1, 0
    found = []
    for round_ in outcome.rounds:
        for number in range(round_.proposed - round_.accepted):
            depth = round_.accepted + number + 2
            if depth <= depths:
                accepted = tokens[num_known : num_known + round_.accepted]
                first = place - number
                drafted = [*accepted, *ids_R[first : place + 1]]
                feature_H = _chain_over(student.net, tokens[:num_known], hidden_NH, drafted)
                logits_1R = (feature_H @ shared_rows().head_VH[student.net.vocab_ids_R].T)[None]
                teacher = Teacher(top_ids_RK[place][None], log_probs_RK[place][None], torch.tensor([-1]))
                coarse = coarsen(logits_1R, teacher, torch.arange(VOCAB_TOKENS))
                found.append((depth, LOSSES["reverse_kl"](coarse)[0].detach()))
            place += 1
        num_known += round_.accepted + 1
    return found


def _branch_terms(student: FeatureStudent, batch: Batch) -> tuple[Tensor, Tensor]:
    """The losses and weights that only a batch with branches has; those of emitted tokens come first."""
    terms, without = student.loss_terms(batch), student.loss_terms(_without_branches(batch))
    num = len(without.losses_N)
    torch.testing.assert_close(terms.losses_N[:num], without.losses_N, rtol=0, atol=0)
    return terms.losses_N[num:].detach(), terms.weights_N[num:]


def _without_branches(batch: Batch) -> Batch:
    return Batch(**{**{name: getattr(batch, name) for name in Batch.__dataclass_fields__}, "branches": None})


@pytest.mark.parametrize("window_tokens", [2, 3, 4, 64])
@pytest.mark.parametrize("depths", [2, 3, 4, 5, 6])
def test_losses_after_rejected_tokens_are_those_of_a_serving_chain(depths: int, window_tokens: int) -> None:
    student, outcome = _student(depths, window_tokens), _outcome()
    [batch] = _batches(student, outcome)
    losses_N, weights_N = _branch_terms(student, batch)
    expected = sorted(_expected(student, outcome, depths), key=lambda one: one[0])
    assert {2: 1, 3: 3, 4: 5, 5: 7, 6: 7}[depths] == len(expected)
    torch.testing.assert_close(losses_N, torch.stack([loss for _, loss in expected]), rtol=1e-4, atol=1e-4)
    assert weights_N.tolist() == pytest.approx([0.8 ** (depth - 1) for depth, _ in expected])


def test_the_reference_tells_a_wrong_token_and_a_wrong_anchor_apart() -> None:
    """Both would change the losses by more than the test above allows."""
    student, outcome = _student(), _outcome()
    right = torch.stack([loss for _, loss in _expected(student, outcome, 4)])
    ids = np.frombuffer(outcome.rejected_ids, "<i4")
    other = msgspec.structs.replace(outcome, rejected_ids=pack_ids(np.roll(ids, 1).tolist()))
    assert float((torch.stack([loss for _, loss in _expected(student, other, 4)]) - right).abs().min()) > 1e-3
    shifted = msgspec.structs.replace(outcome, prompt_ids=PROMPT[1:], output_ids=(PROMPT[0], *outcome.output_ids[1:]))
    assert float((torch.stack([loss for _, loss in _expected(student, shifted, 4)]) - right).abs().max()) > 1e-3


def test_rows_side_by_side_have_the_losses_that_they_have_alone() -> None:
    student = _student()
    outcomes = [
        _outcome(),
        _outcome([(0, (14, 15))], prompt_ids=(9, 8)),
        _outcome([(1, (5, 6, 7, 8)), (0, (4, 4, 4, 4)), (0, (3,))], prompt_ids=(4, 4, 4, 4)),
        _outcome([(2, (5, 6))], prompt_ids=(3, 3, 3)),
    ]
    alone = [_branch_terms(student, batch)[0] for one in outcomes for batch in _batches(student, one)]
    batches = _batches(student, *outcomes)
    together = torch.cat([_branch_terms(student, batch)[0] for batch in batches])
    assert len(batches) < len(outcomes) and len(together) == 13
    torch.testing.assert_close(torch.cat(alone).sort().values, together.sort().values, rtol=1e-4, atol=1e-4)


def test_sections_have_the_branches_that_fit_into_them() -> None:
    """A chain that began in one section and was rejected in the next is left out, and no other."""
    student, outcome = _student(), _outcome()
    [whole] = _batches(student, outcome)
    assert whole.branches is not None
    expected = {int(c) for c in whole.branches.column_W[0]}
    assert expected == {1, 2, 5}
    kept = []
    for example in make_examples(outcome, student.alignment, max_predicting=4):
        if example.branches is not None:
            first = example.first_position + example.num_columns - example.num_predicting - (len(PROMPT) - 2)
            kept += [first + int(column) for column in example.branches.column_W]
    assert kept == [1, 5]  # the chain from column 2 was rejected at column 4


def test_gradients_are_finite_and_reach_every_weight() -> None:
    student = _student()
    [batch] = _batches(student, _outcome())
    terms = student.loss_terms(batch)
    torch.autograd.backward(terms.losses_N[-5:].sum())
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in student.parameters())
    assert all(bool(p.grad.any()) for p in student.parameters() if p.grad is not None)


def test_training_on_rejected_tokens_brings_the_drafter_closer_to_the_target_there() -> None:
    student, outcome = _student(loss="forward_kl"), _outcome()
    [batch] = _batches(student, outcome)
    before, _ = _branch_terms(student, batch)
    optimizer = torch.optim.AdamW(student.parameters(), 3e-3)
    for _ in range(200):
        optimizer.zero_grad()
        terms = student.loss_terms(batch)
        torch.autograd.backward((terms.losses_N * terms.weights_N).mean())
        optimizer.step()
    after, _ = _branch_terms(student, batch)
    assert float(after.mean()) < 0.1 * float(before.mean())


def test_without_recorded_or_wanted_branches_losses_are_as_before() -> None:
    outcome = _outcome()
    bare = make_outcome(prompt_ids=PROMPT, output_ids=outcome.output_ids, kinds=outcome.output_kinds)
    plain = feature_student(unroll_steps=4, window_tokens=64)
    plain_random(plain)
    [expected] = [plain.loss_terms(batch) for batch in _batches(plain, bare)]
    for student, one in ((plain, outcome), (_student(), bare)):
        [batch] = _batches(student, one)
        assert batch.branches is None
        terms = student.loss_terms(batch)
        assert torch.equal(terms.losses_N, expected.losses_N) and torch.equal(terms.weights_N, expected.weights_N)


def test_a_row_that_overflowed_is_left_out() -> None:
    outcome = _outcome()
    log_probs = np.frombuffer(outcome.rejected_top_logprobs, "<f2").reshape(-1, TOP_K).copy()
    log_probs[1] = np.nan
    student = _student()
    [batch] = _batches(student, msgspec.structs.replace(outcome, rejected_top_logprobs=log_probs.tobytes()))
    losses_N, _ = _branch_terms(student, batch)
    assert len(losses_N) == 4 and bool(losses_N.isfinite().all())


def test_other_rounds_have_no_branches() -> None:
    """Those of the lookup, plain ones, and the last one of an answer that ended amid it."""
    rounds = (Round(0, 4, 0, "suffix"), Round(0, 0, 0), Round(1, 4, 2, "feature"))
    outcome = msgspec.structs.replace(make_outcome(output_ids=(4, 5, 6, 7, 8)), rounds=rounds, rejected_top_k=TOP_K)
    assert outcome.num_rejected() == [0, 0, 0]
    check_shapes(outcome)
    assert branches_of(outcome, 4) is None
    longer = msgspec.structs.replace(make_outcome(output_ids=(4, 5, 6, 7, 8, 9)), rounds=rounds, rejected_top_k=TOP_K)
    assert longer.num_rejected() == [0, 0, 2]


def test_unknown_rejected_tokens_make_an_outcome_unfit() -> None:
    student, outcome = _student(), _outcome()
    assert unfit_because(outcome, student.alignment) == ""
    ids = np.frombuffer(outcome.rejected_ids, "<i4").copy()
    ids[0] = VOCAB_TOKENS
    spoilt = msgspec.structs.replace(outcome, rejected_ids=ids.tobytes())
    assert "outside the target's vocabulary" in unfit_because(spoilt, student.alignment)


def test_every_choice_of_loss_is_known() -> None:
    choices = get_args(TrainerConfig.model_fields["rejected_loss"].annotation)
    assert set(choices) == {"none", *LOSSES} - {"hard_label"}, "no token was emitted after a rejected one"
