"""Block verification of one row, position by position; the reference is `osd.verify.block_rule.reject_blockwise`.

Shapes: S sampled rows, K proposed, R rows of logits, V vocabulary.
"""

from __future__ import annotations

import numpy as np

from osd.kernels.cpu.arguments import Shapes, Trial
from osd.kernels.cpu.bits import Array, compiled_fast, is_finite, widen
from osd.kernels.cpu.verdicts.masses import Masses, draw, empty_masses, mass_of, residual_sum, subtract, subtract_one
from osd.kernels.cpu.verdicts.shaping import shape


@compiled_fast
def judge_block(s: int, logits_RV: Array, trial: Trial, shapes: Shapes) -> None:
    """Write the verdict of the s-th row: the number of accepted tokens, and the token that follows them."""
    row, length, masses = trial.rows_S[s], trial.lengths_S[s], empty_masses(logits_RV.shape[1])
    joint, accepted, kept, position = np.float32(1), 0, np.float32(1), 0
    while position < length:
        token, draft = trial.proposed_BK[row, position], np.float32(1)
        if trial.is_drawn:
            draft = trial.draft_probs_BKV[row, position, token]
        if not is_finite(draft):  # a broken drafter's: the proposal ends here
            length = position
            break
        total = _shape_at(row, position, s, logits_RV, trial, shapes, masses)
        if position > 0:
            if trial.is_drawn:
                beyond = residual_sum(masses, total / joint, trial.draft_probs_BKV[row, position])
            else:
                beyond = joint * (1 - mass_of(masses, token) / total)
            if joint >= 1 or trial.uniform_SQ[s, position - 1] * (beyond + 1 - joint) < beyond:
                accepted, kept = position, joint
        target = joint * (mass_of(masses, token) / total)
        joint = np.float32(1) if target >= draft else np.float32(target / draft)
        position += 1
        if joint <= 0:  # no longer block can be accepted
            break
    if position == length and length > 0 and trial.uniform_SQ[s, length - 1] < joint:
        accepted = length
    total = _shape_at(row, accepted, s, logits_RV, trial, shapes, masses)
    if accepted < length:
        if trial.is_drawn:
            rest = subtract(masses, total / kept, trial.draft_probs_BKV[row, accepted])
        else:
            rest = subtract_one(masses, trial.proposed_BK[row, accepted])
        if rest <= 0:
            _shape_at(row, accepted, s, logits_RV, trial, shapes, masses)  # they agree to rounding
    trial.verdicts_S2[s, 0] = accepted
    trial.verdicts_S2[s, 1] = draw(masses, trial.uniform_SQ[s, trial.lengths_S[s]])


@compiled_fast
def _shape_at(
    row: int, position: int, s: int, logits_RV: Array, trial: Trial, shapes: Shapes, masses: Masses
) -> np.float32:
    """The target's unnormalised distribution at a row's position, written to `masses`; returns its sum."""
    logits_V = logits_RV[row * trial.num_positions + position]
    return shape(logits_V, widen(logits_V[trial.best_BQ[row, position]]), shapes, s, masses)
