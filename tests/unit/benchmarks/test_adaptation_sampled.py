"""Scores of sampled answers, against greedy rounds, against speculative sampling itself, and by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from benchmarks.adaptation.replay import replay, score
from benchmarks.adaptation.sampled import acceptance, emitted_probabilities, expected_score
from osd.records.drafter_id import DrafterId
from osd.records.errors import OsdError
from osd.records.outcome import Outcome
from osd.verify.token_rule import reject_tokenwise
from tests.kit.trainer_fakes import VOCAB_TOKENS, feature_student, make_outcome, model_student

LENGTH, NUM_OUTPUTS, MAX_TOKENS = 4, 30, 30


class FromTable:
    """Proposes the answer's tokens where a table says so, and wrong ones elsewhere."""

    id = DrafterId("feature", 1)

    def __init__(self, right_DO: np.ndarray) -> None:
        self._right_DO = right_DO

    def begin(self, outcome: Outcome) -> None:
        self._outcome = outcome

    def propose(self, num_known: int, max_tokens: int) -> list[int]:
        done, answer = num_known - len(self._outcome.prompt_ids), self._outcome.output_ids
        return [
            answer[done + depth] if done + depth < len(answer) and self._right_DO[depth, done + depth] else -1
            for depth in range(max_tokens)
        ]


@pytest.mark.parametrize("seed", range(20))
def test_certain_acceptance_gives_the_rounds_of_a_replay(seed: int) -> None:
    rng = np.random.default_rng(seed)
    right_DO = (rng.random((LENGTH, NUM_OUTPUTS)) < 0.7).astype(float)
    outcome = make_outcome(prompt_ids=[1, 2], output_ids=rng.integers(0, VOCAB_TOKENS, NUM_OUTPUTS).tolist())
    rounds = replay(FromTable(right_DO), outcome, length=LENGTH, max_tokens=MAX_TOKENS)
    expected = score(rounds, NUM_OUTPUTS)
    found = expected_score(right_DO, max_tokens=MAX_TOKENS)
    assert dataclasses.astuple(found) == pytest.approx(dataclasses.astuple(expected))


def test_a_chance_of_acceptance_is_averaged_over() -> None:
    found = expected_score(np.full((1, 3), 0.25), max_tokens=96)
    # After the prefill's token two are left: the first round takes both with 0.25, else one, and one more follows.
    assert found.rounds == pytest.approx(1 + 0.75)
    assert found.accepted == pytest.approx(0.25 + 0.75 * 0.25)
    assert found.alpha == pytest.approx(0.25)


def test_acceptance_given_the_emitted_token_is_that_of_speculative_sampling() -> None:
    generator = torch.Generator().manual_seed(0)
    target, draft = torch.rand(2, 6, generator=generator).softmax(1) ** 2
    target, draft = target / target.sum(), draft / draft.sum()
    num = 40_000
    proposed_B1 = torch.multinomial(draft, num, replacement=True, generator=generator)[:, None]
    uniform_B2 = torch.rand(num, 2, generator=generator, dtype=torch.float64)
    accepted_B, other_B = reject_tokenwise(
        target.expand(num, 2, 6).double(),
        draft.expand(num, 1, 6).double(),
        proposed_B1,
        torch.ones(num).long(),
        uniform_B2,
    )
    emitted_B = torch.where(accepted_B > 0, proposed_B1[:, 0], other_B)
    for token in range(6):
        found = accepted_B[emitted_B == token].double()
        claimed = float(min(1.0, draft[token] / target[token]))
        assert float(found.mean()) == pytest.approx(claimed, abs=5 * 0.5 / len(found) ** 0.5)


def test_probabilities_of_emitted_tokens() -> None:
    probs = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.6, 0.2, 0.15, 0.05]])
    outcome = make_outcome(output_ids=[1, 3], log_probs_OV=probs.log(), top_k=2, temperature=1.0)
    # Token 3 is beyond the two that were kept: it has at most what is left, 0.2, and at most the last one's 0.2.
    assert emitted_probabilities(outcome) == pytest.approx([0.3, 0.2], rel=2e-3)


@pytest.mark.parametrize("kind", ["feature", "model"])
def test_acceptance_by_a_students_own_distribution(kind: str) -> None:
    student = feature_student() if kind == "feature" else model_student()
    outcome = make_outcome(prompt_ids=[1, 2, 3], output_ids=[4, 5, 6, 7, 8], temperature=1.0)
    found_DO = acceptance(student, outcome)
    assert found_DO.shape == (2, 5)
    assert ((found_DO > 0.0) & (found_DO <= 1.0)).all()
    if kind == "model":
        logits_V = student._model(torch.tensor([[1, 2, 3, 4]])).logits[0, -1].detach()  # type: ignore[union-attr]
        claimed = float(logits_V.softmax(0)[5]) / emitted_probabilities(outcome)[1]
        assert found_DO[0, 1] == found_DO[1, 1] == pytest.approx(min(1.0, claimed), rel=1e-4)


def test_other_sampling_is_refused() -> None:
    with pytest.raises(OsdError, match="was not sampled at temperature 1"):
        acceptance(feature_student(), make_outcome(temperature=0.5))
