"""Scores a sampled answer (temperature 1) without the target, by exact expectations.

Speculative sampling couples the proposed with the emitted token so that they agree as often as possible (Leviathan et
al. 2023, arXiv 2211.17192): a proposal drawn from q is accepted, and equals the emitted token y, with probability
min(p(y), q(y)). The emitted token is drawn from p in any case, so given y the proposal was accepted with probability
min(1, q(y) / p(y)). One sampled answer thus gives the acceptance of any drafter on it; the expectation over rounds is
computed exactly.

Shapes: D depths of a chain, O output tokens.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from benchmarks.adaptation.scores import Score
from osd.records.errors import OsdError
from osd.records.outcome import Outcome
from osd.records.outcome_arrays import top_k_arrays
from trainer.examples.batches import make_batches
from trainer.examples.examples import make_examples
from trainer.students.student import Student

Probabilities = NDArray[np.float64]


def acceptance(student: Student, outcome: Outcome) -> Probabilities:
    """The probability that a chain's proposal for output o is accepted at depth d, given that it is reached, [D, O].

    Args:
        student: the drafter's weights, with as many depths as the speculation length.
        outcome: a recorded answer, sampled at temperature 1 without filters.

    Raises:
        OsdError: it was sampled with other parameters.
    """
    if outcome.sampling.temperature != 1.0 or outcome.sampling.top_p != 1.0 or outcome.sampling.top_k:
        raise OsdError(f"answer {outcome.request_id} was not sampled at temperature 1 without filters; record it anew")
    num_outputs = len(outcome.output_ids)
    examples = list(make_examples(outcome, student.alignment, max_predicting=num_outputs))
    [batch] = make_batches(examples, 1 << 30)
    draft_DO = np.array([log_probs_BQ[0].exp().tolist() for log_probs_BQ in student.emitted_log_probs(batch)])
    return np.minimum(1.0, draft_DO / emitted_probabilities(outcome))


def emitted_probabilities(outcome: Outcome) -> Probabilities:
    """The target's probability of each emitted token, [O].

    For a token beyond the recorded top K an upper bound is used: the K-th probability, or all remaining mass.
    Acceptance is underestimated there.
    """
    ids_OK, log_probs_OK = top_k_arrays(outcome)
    probs_OK = np.exp(log_probs_OK.astype(np.float64))
    is_emitted_OK = ids_OK == np.array(outcome.output_ids)[:, None]
    left_O = np.clip(1.0 - probs_OK.sum(axis=1), 1e-9, None)
    beyond_O = np.minimum(probs_OK[:, -1], left_O)
    emitted_O: Probabilities = np.where(is_emitted_OK.any(axis=1), (probs_OK * is_emitted_OK).sum(axis=1), beyond_O)
    return emitted_O


def expected_score(acceptance_DO: Probabilities, *, max_tokens: int) -> Score:
    """A query's expected rounds; with acceptances of 0 and 1, its actual rounds.

    Args:
        acceptance_DO: see `acceptance`; D is the speculation length.
        max_tokens: the longest answer that was asked for.
    """
    length, num_outputs = acceptance_DO.shape
    begins = np.zeros(num_outputs + length + 2)
    begins[1] = 1.0  # the prefill yields the first token
    drafted = first = accepted = examined = 0.0
    for done in range(1, num_outputs):
        limit = min(length, max_tokens - done - 1)
        chance = begins[done]
        drafted += chance * (limit > 0)
        for depth in range(min(limit, num_outputs - done)):
            probability = acceptance_DO[depth, done + depth]
            examined += chance
            accepted += chance * probability
            first += chance * probability * (depth == 0)
            begins[done + depth + 1] += chance * (1.0 - probability)
            chance *= probability
        begins[done + limit + 1] += chance
    return Score(
        rounds=float(begins[1:num_outputs].sum()),
        committed=max(num_outputs - 1, 0),
        drafted=drafted,
        first_accepted=first,
        accepted=accepted,
        examined=examined,
    )
