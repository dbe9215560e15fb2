"""What is asked of a CPU's logits, in one read of them: the greatest, and their log-probabilities.

Shapes: R rows, N of them looked at, V vocabulary, K greatest.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from osd.models.compiled.arguments import Array
from osd.models.compiled.kernels import kernels

_FEW = 1 << 15
"""Logits that torch has looked through before a compiled loop is called."""


def can_look_through(logits: Tensor) -> bool:
    """Whether there is a compiled loop for these, and enough of them."""
    is_bfloat16 = logits.device.type == "cpu" and logits.dtype == torch.bfloat16
    return is_bfloat16 and logits.is_contiguous() and logits.numel() > _FEW and kernels() is not None


def greatest(logits: Tensor) -> Tensor:
    """The index of the greatest along the last dimension; of equal ones, the first."""
    logits_RV = logits.view(-1, logits.shape[-1])
    ids_R1, _, _ = _highest(logits_RV, np.arange(len(logits_RV)), 1, has_totals=False)
    return ids_R1.long().view(logits.shape[:-1])


def top_logprobs(logits_RV: Tensor, places_N: Array, chosen_N: Tensor, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities of the chosen, `[N]`, and the K greatest, `[N, K]`: int32 indices, then log-probabilities."""
    ids_NK, values_NK, totals_N = _highest(logits_RV, places_N, top_k, has_totals=True)
    chosen_logits_N = logits_RV[torch.from_numpy(places_N), chosen_N].float()
    most_N = values_NK[:, 0].clone()
    return chosen_logits_N - most_N - totals_N, ids_NK, values_NK - most_N[:, None] - totals_N[:, None]


def _highest(logits_RV: Tensor, places_N: Array, top_k: int, *, has_totals: bool) -> tuple[Tensor, Tensor, Tensor]:
    found = kernels()
    assert found is not None
    ids_NK = torch.empty(len(places_N), top_k, dtype=torch.int32)
    values_NK = torch.empty(len(places_N), top_k)
    totals_N = torch.empty(len(places_N) if has_totals else 0)
    found.highest(logits_RV, places_N, ids_NK, values_NK, totals_N)
    return ids_NK, values_NK, totals_N
