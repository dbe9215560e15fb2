"""A CPU's sampled rows: their shapes of distribution for compiled loops, and the verdicts on their proposals.

Shapes: B rows of logits, S of them sampled, K proposed tokens, Q = K + 1 positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from osd.kernels.cpu.arguments import Array, Shapes, Trial
from osd.kernels.cpu.kernels import kernels
from osd.machine.arrays import array

if TYPE_CHECKING:
    from osd.models.pass_output import Logits
    from osd.records.proposal import Proposal
    from osd.records.rules import AcceptRule
    from osd.verify.shaping import Shape

_NO_TOKENS: Array = np.empty((0, 0), np.int64)
_NO_PROBS: Array = np.empty((0, 0, 0), np.float32)


def shapes_of(rows: Sequence[Shape]) -> Shapes:
    """The same as arrays."""
    kinds = np.float32, np.float32, np.int64, np.float32
    return Shapes(*(np.array(column, kind) for column, kind in zip(zip(*rows, strict=True), kinds, strict=True)))


def verdicts(
    logits: Logits,
    sampled: Sequence[int],
    lengths: Sequence[int],
    proposal: Proposal | None,
    shapes: Sequence[Shape],
    uniform_SQ: Sequence[Sequence[float]],
    *,
    rule: AcceptRule = "token",
) -> Array:
    """How many proposed tokens each sampled row keeps, and the token that follows them, int64 `[S, 2]`.

    Args:
        logits: such as have bits for compiled loops.
        sampled: rows of the logits, and of the proposal.
        lengths: how many tokens each of them proposes.
        proposal: None where no row proposes.
        shapes: of the target's distributions.
        uniform_SQ: see `osd.verify.token_rule.reject_tokenwise`.
        rule: see `osd.verify.verdict.verify_rows`.
    """
    found, bits_RV = kernels(), logits.bits_RV
    assert found is not None and bits_RV is not None
    probs_BKV = None if proposal is None else proposal.draft_probs_BKV
    trial = Trial(
        rows_S=np.array(sampled),
        num_positions=logits.num_positions,
        best_BQ=array(logits.best_BQ),
        lengths_S=np.array(lengths),
        proposed_BK=_NO_TOKENS if proposal is None else np.ascontiguousarray(array(proposal.token_ids_BK)),
        draft_probs_BKV=_NO_PROBS if probs_BKV is None else np.ascontiguousarray(array(probs_BKV)),
        uniform_SQ=np.array(uniform_SQ, np.float32),
        verdicts_S2=np.empty((len(sampled), 2), np.int64),
        is_blockwise=rule == "block",
    )
    found.judge(bits_RV, trial, shapes_of(shapes))
    return trial.verdicts_S2
