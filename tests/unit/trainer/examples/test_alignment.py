"""The point of the project: a mistake teaches the drafter the right token at the position of the mistake.

The original OSD code shifts once too often and so trains the position *after* the mistake.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from osd.records.outcome import ACCEPTED, BONUS, RECOVERED, Outcome
from tests.kit.trainer_fakes import (
    HIDDEN_SIZE,
    VOCAB_TOKENS,
    feature_student,
    make_outcome,
    model_student,
    plain_random,
    shared_rows,
)
from trainer.examples.batches import make_batches
from trainer.examples.examples import Alignment, make_examples, unfit_because
from trainer.losses.losses import LOSSES
from trainer.students.feature_student import FeatureStudent
from trainer.students.model_student import ModelStudent

PROMPT, OUTPUT = (1, 2, 3), (10, 11, 12, 13, 14)
WRONG = 2
"""The output at which the drafter was wrong; the target said token 12 there."""


def _outcome(**values: Any) -> Outcome:
    kinds = bytes([BONUS, ACCEPTED, RECOVERED, ACCEPTED, ACCEPTED])
    return make_outcome(prompt_ids=PROMPT, output_ids=OUTPUT, kinds=kinds, **values)


def _feature_probs(student: FeatureStudent, outcome: Outcome) -> Tensor:
    """By definition, not by trainer code: probabilities [O, V] of a fresh one-step chain before every output."""
    tokens = torch.tensor(outcome.prompt_ids + outcome.output_ids)
    hidden_TH = torch.frombuffer(bytearray(outcome.hidden), dtype=torch.bfloat16).view(-1, HIDDEN_SIZE).float()
    rows, net = shared_rows(), student.net
    probs = []
    for position in range(len(outcome.prompt_ids), len(tokens)):
        # To say what stands at `position`, the last entry is position - 2: it reads token position - 1.
        entries = torch.arange(max(position - 1 - net.config.window_tokens, 0), position - 1)
        inputs = net.attention_inputs(
            rows.embedding_VH[tokens[entries + 1]][None],
            hidden_TH[entries][None],
            *net.rotation(entries[None], torch.float32),
        )
        attended = torch.nn.functional.scaled_dot_product_attention(
            inputs.query_BNTD[:, :, -1:], inputs.key_BNTD, inputs.value_BNTD
        )
        probs.append(
            (
                net.feature(inputs.residual_BTH[:, -1:], attended.transpose(1, 2).flatten(2))[0, 0] @ rows.head_VH.T
            ).softmax(0)
        )
    return torch.stack(probs).detach()


def _model_probs(student: ModelStudent, outcome: Outcome) -> Tensor:
    tokens = torch.tensor([outcome.prompt_ids + outcome.output_ids])
    logits_TV = student._model(input_ids=tokens).logits[0]
    start = len(outcome.prompt_ids) - 1
    probs_OV: Tensor = logits_TV[start : start + len(outcome.output_ids)].softmax(1).detach()
    return probs_OV


def _gains(student: Any, probs: Callable[[Any, Outcome], Tensor], outcome: Outcome) -> Tensor:
    """By how much training on the mistake raised the right token's log-probability at every output, [O]."""
    before_O = probs(student, outcome)[:, OUTPUT[WRONG]].log()
    optimizer = torch.optim.SGD(student.parameters(), 0.01)
    examples = list(make_examples(outcome, student.alignment, max_predicting=64, positions="rejected"))
    for _ in range(4):
        optimizer.zero_grad()
        for batch in make_batches(examples, 64):
            terms = student.loss_terms(batch)
            (terms.losses_N * terms.weights_N).sum().backward()
        optimizer.step()
    return probs(student, outcome)[:, OUTPUT[WRONG]].log() - before_O


def _random_feature_student(loss: str, unroll_steps: int) -> Any:
    """Hidden states are alike at neighbours here, which the initial weights would pass on."""
    student = feature_student(loss, unroll_steps=unroll_steps)
    plain_random(student)
    return student


CASES: list[Any] = [
    pytest.param(lambda loss: _random_feature_student(loss, 1), _feature_probs, id="feature"),
    pytest.param(lambda loss: _random_feature_student(loss, 2), _feature_probs, id="feature-unrolled"),
    pytest.param(lambda loss: model_student(loss, tie=False), _model_probs, id="model"),
]


def _teaches_the_mistake(gains_O: Tensor) -> bool:
    """The right token became likelier where the drafter was wrong, and by far less at the position after it."""
    at_mistake, after_it = float(gains_O[WRONG]), float(gains_O[WRONG + 1])
    return at_mistake > 1e-3 and at_mistake == float(gains_O.max()) and at_mistake > 2 * after_it


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("make_student", "probs"), CASES)
def test_training_on_a_mistake_teaches_that_position_and_not_the_next(
    make_student: Callable[[str], Any], probs: Callable[[Any, Outcome], Tensor], loss: str
) -> None:
    gains_O = _gains(make_student(loss), probs, _outcome())
    assert _teaches_the_mistake(gains_O), gains_O


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("make_student", "probs"), CASES)
def test_the_same_check_fails_when_the_shift_is_off_by_one(
    make_student: Callable[[str], Any],
    probs: Callable[[Any, Outcome], Tensor],
    loss: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The mutation: every column learns from the row of the output before, as in the original's double shift."""

    unshifted = make_examples

    def shifted(*args: Any, **options: Any) -> Any:
        for example in unshifted(*args, **options):
            yield replace(
                example,
                teacher_ids_QK=example.teacher_ids_QK.roll(1, 0),
                teacher_log_probs_QK=example.teacher_log_probs_QK.roll(1, 0),
                emitted_Q=example.emitted_Q.roll(1, 0),
                in_loss_Q=example.in_loss_Q.roll(1, 0),
            )

    monkeypatch.setitem(globals(), "make_examples", shifted)
    gains_O = _gains(make_student(loss), probs, _outcome())
    assert not _teaches_the_mistake(gains_O), gains_O


@pytest.mark.parametrize(("make_student", "probs"), CASES)
def test_the_one_loss_term_is_that_of_the_mistake(
    make_student: Callable[[str], Any], probs: Callable[[Any, Outcome], Tensor]
) -> None:
    student, outcome = make_student("hard_label"), _outcome()
    (batch,) = make_batches(
        list(make_examples(outcome, student.alignment, max_predicting=64, positions="rejected")), 64
    )
    terms = student.loss_terms(batch)
    expected = -probs(student, outcome)[WRONG, OUTPUT[WRONG]].log()
    assert float(terms.losses_N[0].detach()) == pytest.approx(float(expected), abs=1e-4)
    depths = getattr(student, "_unroll_steps", 1)
    assert len(terms.losses_N) == depths and terms.weights_N.tolist() == pytest.approx([1.0, 0.8][:depths])


@pytest.mark.parametrize(("lookahead", "hidden_size"), [(1, 0), (2, HIDDEN_SIZE)])
@pytest.mark.parametrize("hidden_start", [0, 2])
@pytest.mark.parametrize("max_predicting", [2, 64])
def test_columns_read_and_predict_what_the_outcome_says(
    lookahead: int, hidden_size: int, hidden_start: int, max_predicting: int
) -> None:
    hidden_NH = torch.arange(8.0 - hidden_start)[:, None].expand(-1, HIDDEN_SIZE)[: 7 - hidden_start] + hidden_start
    outcome = _outcome(hidden_start=hidden_start, hidden_NH=hidden_NH)
    tokens = PROMPT + OUTPUT
    alignment = Alignment(lookahead, VOCAB_TOKENS, hidden_size, context_columns=2)
    predicted = []
    for example in make_examples(outcome, alignment, max_predicting=max_predicting):
        num_context = example.num_columns - example.num_predicting
        assert num_context <= 2 and example.num_predicting <= max_predicting
        for column in range(example.num_columns):
            position = example.first_position + column
            assert int(example.input_ids_T[column]) == tokens[position + lookahead - 1]
            if example.hidden_TH is not None:
                assert float(example.hidden_TH[column, 0]) == position
        for column in range(example.num_predicting):
            output = example.first_position + num_context + column + lookahead - len(PROMPT)
            assert int(example.emitted_Q[column]) == OUTPUT[output]
            assert int(example.teacher_ids_QK[column, 0]) == OUTPUT[output]
            predicted.append(output)
    first = max(0, hidden_start + lookahead - len(PROMPT)) if hidden_size else 0
    assert predicted == list(range(first, len(OUTPUT)))


def test_a_prompt_of_one_token_leaves_the_first_output_to_the_target() -> None:
    outcome = make_outcome(prompt_ids=(1,), output_ids=(10, 11))
    (example,) = make_examples(outcome, Alignment(2, VOCAB_TOKENS, HIDDEN_SIZE), max_predicting=8)
    assert example.emitted_Q.tolist() == [11] and example.first_position == 0


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"hidden": b""}, "hidden states"),
        ({"output_ids": ()}, "bytes where its shape needs"),
        ({"prompt_ids": (1, 2, VOCAB_TOKENS)}, "outside the target's vocabulary"),
        ({"prompt_ids": (1, 2, -1)}, "outside the target's vocabulary"),
        ({"top_logprobs": b"x"}, "top_logprobs has 1 bytes"),
    ],
)
def test_unfit_outcomes_are_told_apart(values: dict[str, Any], reason: str) -> None:
    alignment = Alignment(2, VOCAB_TOKENS, HIDDEN_SIZE)
    outcome = _outcome()
    assert unfit_because(outcome, alignment) == ""
    fields = {name: getattr(outcome, name) for name in outcome.__struct_fields__}
    assert reason in unfit_because(Outcome(**{**fields, **values}), alignment)


def test_padding_and_grouping_change_no_loss() -> None:
    """Examples of several lengths, alone and side by side, have the same losses."""
    outcomes = [
        make_outcome(f"q-{n}", prompt_ids=range(1, 2 + n), output_ids=range(3, 6 + 2 * n), top_k=3 + n)
        for n in range(4)
    ]
    student = feature_student(unroll_steps=3)
    examples = [e for outcome in outcomes for e in make_examples(outcome, student.alignment, max_predicting=64)]
    batches = make_batches(examples, 10_000)
    alone = torch.cat([student.loss_terms(batch).losses_N for e in examples for batch in make_batches([e], 10_000)])
    together = torch.cat([student.loss_terms(batch).losses_N for batch in batches])
    torch.testing.assert_close(alone.sort().values, together.sort().values, rtol=1e-4, atol=1e-4)
    assert len(batches) < len(examples)
