"""Block verification of one row, position by position; the reference is `osd.verify.block_rule.reject_blockwise`.

Shapes: S sampled rows, K proposed, R rows of logits, V vocabulary.
"""

from __future__ import annotations

import numpy as np

from osd.kernels.cpu.arguments import Shapes, Trial
from osd.kernels.cpu.bits import Array, is_finite, loose, widen
from osd.kernels.cpu.verdicts.masses import Weights, draw, excess, leave, leave_out, room_for, weight
from osd.kernels.cpu.verdicts.shaping import shape


@loose
def judge_block(s: int, logits_RV: Array, trial: Trial, shapes: Shapes) -> None:
    """Write the verdict of the s-th row: the number of accepted tokens, and the token that follows them."""
    row, length, weights = trial.rows_S[s], trial.lengths_S[s], room_for(logits_RV.shape[1])
    joint, accepted, kept, position = np.float32(1), 0, np.float32(1), 0
    while position < length:
        token, draft = trial.proposed_BK[row, position], np.float32(1)
        if trial.is_drawn:
            draft = trial.draft_probs_BKV[row, position, token]
        if not is_finite(draft):  # a broken drafter's: the proposal ends here
            length = position
            break
        total = _shape_at(row, position, s, logits_RV, trial, shapes, weights)
        if position > 0:
            if trial.is_drawn:
                beyond = excess(weights, total / joint, trial.draft_probs_BKV[row, position])
            else:
                beyond = joint * (1 - weight(weights, token) / total)
            if joint >= 1 or trial.uniform_SQ[s, position - 1] * (beyond + 1 - joint) < beyond:
                accepted, kept = position, joint
        target = joint * (weight(weights, token) / total)
        joint = np.float32(1) if target >= draft else np.float32(target / draft)
        position += 1
        if joint <= 0:  # no longer block can be accepted
            break
    if position == length and length > 0 and trial.uniform_SQ[s, length - 1] < joint:
        accepted = length
    total = _shape_at(row, accepted, s, logits_RV, trial, shapes, weights)
    if accepted < length:
        if trial.is_drawn:
            rest = leave(weights, total / kept, trial.draft_probs_BKV[row, accepted])
        else:
            rest = leave_out(weights, trial.proposed_BK[row, accepted])
        if rest <= 0:
            _shape_at(row, accepted, s, logits_RV, trial, shapes, weights)  # they agree to rounding
    trial.verdicts_S2[s, 0] = accepted
    trial.verdicts_S2[s, 1] = draw(weights, trial.uniform_SQ[s, trial.lengths_S[s]])


@loose
def _shape_at(
    row: int, position: int, s: int, logits_RV: Array, trial: Trial, shapes: Shapes, weights: Weights
) -> np.float32:
    """The target's unnormalised distribution at a row's position, written to `weights`; returns its sum."""
    logits_V = logits_RV[row * trial.num_positions + position]
    return shape(logits_V, widen(logits_V[trial.best_BQ[row, position]]), shapes, s, weights)
