"""What a decoder layer does to each token's vector between its matrix products; torch's way and the CPU's.

Shapes: H the size of a vector, I that of the MLP.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class RowOps(Protocol):
    """On the last dimension of any number of rows."""

    def norm(self, x: Tensor, weight_H: Tensor, eps: float) -> Tensor:
        """RMS norm (Zhang and Sennrich 2019, arXiv 1910.07467): `x / sqrt(mean(x²) + eps) * weight`."""
        ...

    def gate(self, gate_up: Tensor) -> Tensor:
        """`silu(gate) * up` of `[..., 2I]` (Shazeer 2020, arXiv 2002.05202), `[..., I]`."""
        ...


class TorchRowOps:
    """On any device, with gradients."""

    def norm(self, x: Tensor, weight_H: Tensor, eps: float) -> Tensor:
        """See `RowOps`."""
        size = x.shape[-1]
        if x.device.type != "cpu":
            return F.rms_norm(x, (size,), weight_H, eps)
        # On a CPU torch has one kernel for a layer norm and ten for this. The mean of [x ; -x] is zero, so that its
        # layer norm begins with the RMS norm of x.
        return F.layer_norm(torch.cat((x, -x), dim=-1), (2 * size,), eps=eps)[..., :size] * weight_H

    def gate(self, gate_up: Tensor) -> Tensor:
        """See `RowOps`."""
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up
