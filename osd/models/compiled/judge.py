"""Token-wise rejection sampling of a row, position by position: `osd.rejection.reject_tokenwise` does so with tensors.

A position after the first rejection is never looked at. Shapes: S sampled rows, K proposed, R rows of logits,
V vocabulary.
"""

from __future__ import annotations

import numpy as np

from osd.models.compiled.arguments import Shapes, Trial
from osd.models.compiled.bits import Array, inner, is_finite
from osd.models.compiled.shaping import draw, shape, sum_from


@inner
def judge(s: int, logits_RV: Array, trial: Trial, shapes: Shapes) -> None:
    """The s-th row's verdict: how many tokens are kept, and the one that follows them."""
    row, length, probs_V = trial.rows_S[s], trial.lengths_S[s], np.empty(logits_RV.shape[1], np.float32)
    accepted = 0
    while True:
        logits_V = logits_RV[row * trial.num_positions + accepted]
        shape(logits_V, shapes, s, probs_V)
        if accepted == length:
            break
        draft_V, token = trial.draft_probs_BKV[row, accepted], trial.proposed_BK[row, accepted]
        draft, target = draft_V[token], probs_V[token]
        if not is_finite(draft):  # a broken drafter's tokens are no draws from anything
            break
        if trial.uniform_SQ[s, accepted] * draft >= target:
            _leave(probs_V, draft_V)
            if sum_from(probs_V, np.float32(0)) <= 0:  # they agree to rounding, and nothing is rejected but by rounding
                shape(logits_V, shapes, s, probs_V)
            break
        accepted += 1
    trial.verdicts_S2[s, 0] = accepted
    trial.verdicts_S2[s, 1] = draw(probs_V, trial.uniform_SQ[s, length])


@inner
def _leave(probs_V: Array, draft_V: Array) -> None:
    """What the target gives beyond the draft, unnormalised."""
    for i in range(len(probs_V)):
        beyond = probs_V[i] - draft_V[i]
        probs_V[i] = beyond if beyond > 0 else np.float32(0)
