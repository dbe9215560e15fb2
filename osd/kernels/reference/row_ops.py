"""The operations of a decoder layer on each token's vector between matrix products, on any device, with gradients.

Shapes: H the size of a vector, I that of the MLP.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Norm(NamedTuple):
    """An RMS norm, with transformers' attribute names."""

    weight: Tensor
    variance_epsilon: float


def rms_norm(x: Tensor, weight_H: Tensor, eps: float) -> Tensor:
    """`x / sqrt(mean(x²) + eps) * weight` (Zhang and Sennrich 2019, arXiv 1910.07467)."""
    size = x.shape[-1]
    if x.device.type != "cpu":
        return F.rms_norm(x, (size,), weight_H, eps)
    # On a CPU torch has one kernel for layer norm, but ten for this formula. The mean of [x ; -x] is zero, so the first
    # half of its layer norm is the RMS norm of x.
    return F.layer_norm(torch.cat((x, -x), dim=-1), (2 * size,), eps=eps)[..., :size] * weight_H


def silu_gate(gate_up: Tensor) -> Tensor:
    """`silu(gate) * up` of `[..., 2I]` (Shazeer 2020, arXiv 2002.05202), `[..., I]`."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up
