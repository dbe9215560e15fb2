"""Token-wise rejection sampling of one row, position by position; the reference is `osd.verify.token_rule`.

Positions after the first rejection are not computed. Shapes: S sampled rows, K proposed, R rows of logits,
V vocabulary.
"""

from __future__ import annotations

import numpy as np

from osd.kernels.cpu.arguments import Shapes, Trial
from osd.kernels.cpu.bits import Array, compiled_fast, is_finite, widen
from osd.kernels.cpu.verdicts.block_rule import judge_block
from osd.kernels.cpu.verdicts.masses import draw, empty_masses, mass_of, subtract, subtract_one
from osd.kernels.cpu.verdicts.shaping import shape


@compiled_fast
def judge(s: int, logits_RV: Array, trial: Trial, shapes: Shapes) -> None:
    """Write the verdict of the s-th row: the number of accepted tokens, and the token that follows them."""
    if trial.is_blockwise:
        judge_block(s, logits_RV, trial, shapes)
        return
    row, length, masses = trial.rows_S[s], trial.lengths_S[s], empty_masses(logits_RV.shape[1])
    accepted = 0
    while True:
        logits_V = logits_RV[row * trial.num_positions + accepted]
        most = widen(logits_V[trial.best_BQ[row, accepted]])
        total = shape(logits_V, most, shapes, s, masses)
        if accepted == length:
            break
        token = trial.proposed_BK[row, accepted]
        target, draft = mass_of(masses, token) / total, np.float32(1)
        if trial.is_drawn:
            draft = trial.draft_probs_BKV[row, accepted, token]
        if not is_finite(draft):  # a broken drafter's tokens are no draws from anything
            break
        if trial.uniform_SQ[s, accepted] * draft >= target:
            if trial.is_drawn:
                rest = subtract(masses, total, trial.draft_probs_BKV[row, accepted])
            else:
                rest = subtract_one(masses, token)
            if rest <= 0:  # they agree to rounding, and nothing is rejected but by rounding
                shape(logits_V, most, shapes, s, masses)
            break
        accepted += 1
    trial.verdicts_S2[s, 0] = accepted
    trial.verdicts_S2[s, 1] = draw(masses, trial.uniform_SQ[s, length])
