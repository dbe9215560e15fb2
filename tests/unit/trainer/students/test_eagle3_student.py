"""The `eagle3` student: its unrolled chain against the plain implementation, and what a step does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from osd.drafters.eagle3.layout import TargetShape, parse_config
from osd.drafters.eagle3.reading import Head, head_of
from osd.records.outcome import BONUS, RECOVERED, Outcome, Round
from osd.records.outcome_arrays import hidden_states, pack_ids, pack_top_k
from osd.records.shared_rows import SharedRows
from tests.kit.eagle3_heads import HIDDEN_SIZE, VOCAB_TOKENS, head_config, head_tensors
from tests.kit.eagle3_plain import plain_fused, plain_outputs, rms
from tests.kit.trainer_fakes import make_outcome, trainer_config
from trainer.build import build_feature_student
from trainer.examples.batches import Batch, make_batches
from trainer.examples.branches import Branches
from trainer.examples.examples import make_examples, unfit_because
from trainer.losses.losses import LOSSES, Teacher, coarsen
from trainer.optimization.step import new_training_step
from trainer.students.branch_chain import branch_features
from trainer.students.eagle3_student import Eagle3Student
from trainer.students.feature_student import FeatureStudent

_FUSED = 3 * HIDDEN_SIZE


def _rows() -> Tensor:
    return torch.randn(VOCAB_TOKENS, HIDDEN_SIZE, generator=torch.Generator().manual_seed(1))


def _head(raw: Mapping[str, Any], own_VH: Tensor | None = None) -> Head:
    tensors = head_tensors(raw)
    if own_VH is not None:
        tensors["embed_tokens.weight"] = own_VH
    return head_of(parse_config(raw, TargetShape(HIDDEN_SIZE, VOCAB_TOKENS, 2)), tensors, _rows())


def _student(head: Head, *, compute_dtype: torch.dtype = torch.float32, rejected_loss: str = "none") -> Eagle3Student:
    student = Eagle3Student(
        head.config.network(),
        SharedRows(_rows(), _rows(), None),
        loss=LOSSES["forward_kl"],
        unroll_steps=3,
        rejected_loss=LOSSES.get(rejected_loss),
        compute_dtype=compute_dtype,
    )
    student.load_state(head.state)
    return student


def _outcome(request_id: str = "r-1") -> Outcome:
    prompt_ids, output_ids = (1, 2, 3, 4, 5, 6), (7, 8, 9, 10, 11, 12, 13, 14)
    generator = torch.Generator().manual_seed(3)
    hidden_NJ = torch.randn(len(prompt_ids) + len(output_ids) - 1, _FUSED, generator=generator)
    return make_outcome(request_id, prompt_ids=prompt_ids, output_ids=output_ids, hidden_NH=hidden_NJ)


def _batch(student: FeatureStudent, outcome: Outcome) -> Batch:
    (batch,) = make_batches(list(make_examples(outcome, student.alignment, max_predicting=64)), 64)
    return batch


@pytest.mark.parametrize("norms", [(), ("norm_before_residual", "norm_before_fc", "norm_output"), ("fc_norm",)])
@pytest.mark.parametrize("has_embedding", [False, True])
def test_unrolled_outputs_equal_an_explicit_chain(norms: tuple[str, ...], has_embedding: bool) -> None:
    """Depth d of an entry: the target's states up to d - 1 entries before it, then the layer's own outputs."""
    raw, outcome = head_config(**dict.fromkeys(norms, True)), _outcome()
    own_VH = _rows().flip(0) if has_embedding else None
    head, w = _head(raw, own_VH), head_tensors(raw)
    student = _student(head)
    tokens, hidden_NJ = torch.tensor(outcome.prompt_ids + outcome.output_ids), hidden_states(outcome)
    assert hidden_NJ is not None
    embedded_TH = F.embedding(tokens[1:], _rows() if own_VH is None else own_VH)
    fused_NH = plain_fused(raw, w, hidden_NJ.float())
    batch = _batch(student, outcome)
    with torch.no_grad():
        by_depth = list(student.features(batch))
    for depth, feature_BQH in enumerate(by_depth, start=1):
        for column in range(depth - 1, batch.num_predicting):
            last = batch.num_context + column
            hidden_TH = fused_NH[: last - depth + 2]
            for _ in range(depth):
                outputs_TH = plain_outputs(raw, w, embedded_TH[: len(hidden_TH)], hidden_TH)
                normed_H = rms(outputs_TH[-1], w["norm.weight"], raw["rms_norm_eps"])
                read_H = normed_H if raw.get("norm_output") else outputs_TH[-1]
                hidden_TH = torch.cat((hidden_TH, read_H[None]))
            torch.testing.assert_close(feature_BQH[0, column], read_H, rtol=1e-4, atol=1e-4)
            logits_R = normed_H @ w["lm_head.weight"].T
            torch.testing.assert_close(student._logits(feature_BQH[0, column]), logits_R, rtol=1e-3, atol=1e-3)


def test_losses_after_rejected_tokens_are_those_of_an_explicit_chain() -> None:
    """Of three drafted tokens none was accepted; the target's distributions after the first two are known."""
    raw, drafted, plain = head_config(norm_output=True), (20, 21, 22), _outcome()
    head, w, generator = _head(raw), head_tensors(raw), torch.Generator().manual_seed(5)
    top = torch.randn(3, VOCAB_TOKENS, generator=generator).log_softmax(1).topk(4, dim=1)
    top_ids, top_logprobs, _ = pack_top_k(top.indices, top.values)
    outcome = msgspec.structs.replace(
        plain,
        output_kinds=bytes([BONUS, RECOVERED]) + bytes([BONUS]) * 6,
        rounds=(Round(1, 3, 0, "eagle3"), *[Round(0, 0, 0)] * 6),
        rejected_top_k=4,
        rejected_ids=pack_ids(drafted),
        rejected_top_ids=top_ids,
        rejected_top_logprobs=top_logprobs,
    )
    student = _student(head, rejected_loss="reverse_kl")
    (batch,) = make_batches(list(make_examples(outcome, student.alignment, max_predicting=64)), 10_000)
    with torch.no_grad():
        losses_N = student.loss_terms(batch).losses_N[-2:]
    known, hidden_NJ = [*plain.prompt_ids, plain.output_ids[0]], hidden_states(outcome)
    assert hidden_NJ is not None
    hidden_TH = plain_fused(raw, w, hidden_NJ[: len(known) - 1].float())
    for number in range(3):
        embedded_TH = _rows()[torch.tensor([*known, *drafted[:number]][1:])]
        outputs_TH = plain_outputs(raw, w, embedded_TH, hidden_TH)
        normed_H = rms(outputs_TH[-1], w["norm.weight"], raw["rms_norm_eps"])
        hidden_TH = torch.cat((hidden_TH, normed_H[None]))
        if number:
            ids_1K, log_probs_1K = top.indices[number - 1][None], top.values[number - 1][None]
            teacher = Teacher(ids_1K, log_probs_1K, torch.tensor([-1]))
            logits_1R = (normed_H @ w["lm_head.weight"].T)[None]
            [right] = LOSSES["reverse_kl"](coarsen(logits_1R, teacher, student._slot_V))
            torch.testing.assert_close(losses_N[number - 1], right, rtol=1e-2, atol=1e-3)  # recorded in float16


def test_steps_lower_the_loss_and_train_all_but_the_embedding() -> None:
    head = _head(head_config(), _rows().flip(0))
    student = _student(head)
    update, batch = new_training_step(trainer_config(learning_rate=1e-2), student), _batch(student, _outcome())
    losses = [update.run([batch]).loss for _ in range(30)]
    assert losses[1] < losses[0] and losses[-1] < 0.5 * losses[0]
    changed = {name for name, one in student.state().items() if not torch.equal(one, head.state[name])}
    assert changed == head.state.keys() - {"vocab_ids_R", "embed_tokens.weight"}


def test_a_trainer_is_built_with_it() -> None:
    head = _head(head_config())
    student = build_feature_student(trainer_config(device="cpu"), head.config, SharedRows(_rows(), _rows(), None))
    assert isinstance(student, Eagle3Student) and student.kind == "eagle3" and student.config == head.config.as_dict()


def test_its_vocabulary_stays() -> None:
    head = _head(head_config())
    student = _student(head)
    student.refresh_vocab(torch.arange(VOCAB_TOKENS).float(), seen_before=1.0)
    assert torch.equal(student.state()["vocab_ids_R"], head.state["vocab_ids_R"])


def test_a_twin_has_the_same_shape_and_weights_of_its_own() -> None:
    student = _student(_head(head_config()))
    twin = student.twin()
    assert isinstance(twin, Eagle3Student) and twin.alignment == student.alignment
    twin.load_state(student.state())
    batch = _batch(student, _outcome())
    with torch.no_grad():
        before = twin.loss_terms(batch).losses_N
        student.parameters()[0].add_(1.0)
        assert torch.equal(twin.loss_terms(batch).losses_N, before)
        assert not torch.equal(student.loss_terms(batch).losses_N, before)


def test_outcomes_without_the_fused_states_are_not_trained_on() -> None:
    student = _student(_head(head_config()))
    assert unfit_because(_outcome(), student.alignment) == ""
    other = make_outcome(prompt_ids=(1, 2), output_ids=(3,))
    assert unfit_because(other, student.alignment) == "it carries hidden states of size 16, the drafter needs 96"


def test_mixed_precision_stays_close_to_float32() -> None:
    exact, mixed = (_student(_head(head_config()), compute_dtype=one) for one in (torch.float32, torch.bfloat16))
    batch = _batch(exact, _outcome())
    right, rough = exact.loss_terms(batch), mixed.loss_terms(batch)
    torch.testing.assert_close(rough.losses_N, right.losses_N, rtol=0.1, atol=0.1)
    torch.autograd.backward(rough.losses_N.sum())
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in mixed.parameters())


def test_a_branch_over_the_emitted_tokens_has_the_features_of_the_emitted_text() -> None:
    """Chains that branch at depth 2 or 3 and go on with what was emitted; with key heads shared by query heads."""
    student = _student(_head(head_config()))
    batch = _batch(student, _outcome())
    columns, emitted = [0, 2, 3], batch.input_ids_BT[0, batch.num_context :]
    tokens_WD = torch.stack([emitted[column + 1 : column + 3] for column in columns])
    tokens_WD[1, 0] = -1  # branches one depth later
    none_WDK = torch.full((1, 3, 2, 1), -1)
    branches = Branches(torch.tensor([columns]), tokens_WD[None], none_WDK, none_WDK.float())
    depths = list(student._depths(replace(batch, branches=branches)))
    found = list(branch_features(student.net, student._embedding_VH, replace(batch, branches=branches), depths))
    assert len(found) == 2
    for depth, feature_BWH in enumerate(found, start=2):
        branched = [branch for branch in range(3) if tokens_WD[branch, depth - 2] >= 0]
        for branch, column in ((branch, columns[branch]) for branch in branched):
            expected_H = depths[depth - 1].feature_BQH[0, column + depth - 1]
            torch.testing.assert_close(feature_BWH[0, branch], expected_H, rtol=1e-4, atol=1e-4)
