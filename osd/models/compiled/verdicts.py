"""A CPU's sampled rows: their shapes of distribution for compiled loops, and the verdicts on their proposals.

Shapes: B rows of logits, S of them sampled, K proposed tokens, Q = K + 1 positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from osd.models.compiled.arguments import Array, Shapes, Trial
from osd.models.compiled.kernels import kernels

if TYPE_CHECKING:
    from osd.proposal import Proposal
    from osd.sampling import Shape

_NO_TOKENS: Array = np.empty((0, 0), np.int64)
_NO_PROBS: Array = np.empty((0, 0, 0), np.float32)


def can_judge(logits: Tensor) -> bool:
    """Whether there is a compiled loop for these; never a matter of how many they are."""
    return logits.device.type == "cpu" and logits.dtype == torch.bfloat16 and kernels() is not None


def shapes_of(rows: Sequence[Shape]) -> Shapes:
    """The same as arrays."""
    kinds = np.float32, np.float32, np.int64, np.float32
    return Shapes(*(np.array(column, kind) for column, kind in zip(zip(*rows, strict=True), kinds, strict=True)))


def verdicts(
    logits_BQV: Tensor,
    best_BQ: Tensor,
    sampled: Sequence[int],
    lengths: Sequence[int],
    proposal: Proposal | None,
    shapes: Sequence[Shape],
    uniform_SQ: Sequence[Sequence[float]],
) -> Tensor:
    """How many proposed tokens each sampled row keeps, and the token that follows them: `[S, 2]`.

    Args:
        logits_BQV: see `can_judge`.
        best_BQ: the index of each greatest logit.
        sampled: rows of the logits, and of the proposal.
        lengths: how many tokens each of them proposes.
        proposal: None where no row proposes.
        shapes: of the target's distributions.
        uniform_SQ: see `osd.rejection.reject_tokenwise`.
    """
    found = kernels()
    assert found is not None
    verdicts_S2 = np.empty((len(sampled), 2), np.int64)
    trial = Trial(
        rows_S=np.array(sampled),
        num_positions=logits_BQV.shape[1],
        best_BQ=best_BQ.numpy(),
        lengths_S=np.array(lengths),
        proposed_BK=_NO_TOKENS if proposal is None else proposal.token_ids_BK.contiguous().numpy(),
        draft_probs_BKV=_NO_PROBS
        if proposal is None or proposal.draft_probs_BKV is None
        else proposal.draft_probs_BKV.contiguous().numpy(),
        uniform_SQ=np.array(uniform_SQ, np.float32),
        verdicts_S2=verdicts_S2,
    )
    found.judge(logits_BQV.reshape(-1, logits_BQV.shape[-1]), trial, shapes_of(shapes))
    return torch.from_numpy(verdicts_S2)
