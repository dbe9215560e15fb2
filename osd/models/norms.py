"""RMS norm (Zhang and Sennrich 2019, arXiv 1910.07467), fast at a few rows on a CPU, too."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`x / sqrt(mean(x²) + eps) * weight` over the last dimension."""
    size = x.shape[-1]
    if x.device.type != "cpu":
        return F.rms_norm(x, (size,), weight, eps)
    # On a CPU torch has one kernel for a layer norm and ten for this. The mean of [x ; -x] is zero, so that its layer
    # norm begins with the RMS norm of x.
    return F.layer_norm(torch.cat((x, -x), dim=-1), (2 * size,), eps=eps)[..., :size] * weight
