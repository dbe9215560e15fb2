"""What is asked of a CPU's logits, in one read of them: the greatest, and their log-probabilities.

Shapes: R rows, N of them looked at, V vocabulary, K greatest.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from osd.kernels.cpu.arguments import NONE, Array, look_at
from osd.kernels.cpu.kernels import Kernels, kernels
from osd.machine.arrays import array

_FEW = 1 << 15
"""Logits that torch has looked through before a compiled loop is called."""


def can_look_through(logits: Tensor) -> bool:
    """Whether there is a compiled loop for these, and enough of them."""
    is_bfloat16 = logits.device.type == "cpu" and logits.dtype == torch.bfloat16
    return is_bfloat16 and logits.is_contiguous() and logits.numel() > _FEW and kernels() is not None


def greatest(logits: Tensor) -> Tensor:
    """The index of the greatest along the last dimension; of equal ones, the first."""
    logits_RV = logits.view(-1, logits.shape[-1])
    look = look_at(np.arange(len(logits_RV)), NONE, 1)
    _kernels().highest(array(logits_RV), look)
    return torch.from_numpy(look.ids_NK.astype(np.int64)).view(logits.shape[:-1])


def top_logprobs(bits_RV: Array, places_N: Array, chosen_ids_N: Array, top_k: int) -> tuple[Array, Array, Array]:
    """Log-probabilities of the chosen, `[N]`, and the K greatest, `[N, K]`: int32 indices, then log-probabilities.

    Logits are bfloat16's bits; places and chosen are int64.
    """
    look = look_at(places_N, chosen_ids_N, top_k)
    _kernels().highest(bits_RV, look)
    return look.chosen_N, look.ids_NK, look.values_NK


def _kernels() -> Kernels:
    found = kernels()
    assert found is not None
    return found
