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
    from osd.sampling import Shaping

_NO_PROBS: Array = np.empty((0, 0, 0), np.float32)


def can_judge(logits: Tensor) -> bool:
    """Whether there is a compiled loop for these; never a matter of how many they are."""
    return logits.device.type == "cpu" and logits.dtype == torch.bfloat16 and kernels() is not None


def shapes_of(shaping: Shaping) -> Shapes:
    """The same as arrays; a filter that no row has is one that lets all pass."""
    num_rows = len(shaping.temperature_B11)

    def column(values_B11: Tensor | None, otherwise: Array) -> Array:
        column_B: Array = otherwise.repeat(num_rows) if values_B11 is None else values_B11.view(-1).numpy()
        return column_B

    return Shapes(
        temperature_B=shaping.temperature_B11.view(-1).numpy(),
        min_p_B=column(shaping.min_p_B11, np.zeros(1, np.float32)),
        top_k_B=column(shaping.top_k_B11, np.full(1, np.iinfo(np.int64).max)),
        top_p_B=column(shaping.top_p_B11, np.ones(1, np.float32)),
    )


def verdicts(
    logits_BQV: Tensor,
    sampled: Sequence[int],
    lengths: Sequence[int],
    proposed_BK: Tensor,
    draft_probs_BKV: Tensor | None,
    shaping: Shaping,
    uniform_SQ: Tensor,
) -> Tensor:
    """How many proposed tokens each sampled row keeps, and the token that follows them: `[S, 2]`.

    Args:
        logits_BQV: see `can_judge`.
        sampled: rows of the logits.
        lengths: how many tokens each of them proposes.
        proposed_BK: the tokens.
        draft_probs_BKV: the very distributions they were drawn from; None where no sampled row proposes.
        shaping: how the target's distributions are shaped.
        uniform_SQ: see `osd.rejection.reject_tokenwise`.
    """
    found = kernels()
    assert found is not None
    verdicts_S2 = np.empty((len(sampled), 2), np.int64)
    trial = Trial(
        rows_S=np.array(sampled),
        num_positions=logits_BQV.shape[1],
        lengths_S=np.array(lengths),
        proposed_BK=proposed_BK.contiguous().numpy(),
        draft_probs_BKV=_NO_PROBS if draft_probs_BKV is None else draft_probs_BKV.contiguous().numpy(),
        uniform_SQ=uniform_SQ.numpy(),
        verdicts_S2=verdicts_S2,
    )
    found.judge(logits_BQV.reshape(-1, logits_BQV.shape[-1]), trial, shapes_of(shaping))
    return torch.from_numpy(verdicts_S2)
