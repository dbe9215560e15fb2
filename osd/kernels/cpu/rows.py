"""The operations of a decoder layer on single vectors."""

from __future__ import annotations

import numpy as np

from osd.kernels.cpu.bits import Array, inlined, narrow, widen


@inlined
def norm(x_H: Array, weight_H: Array, eps: np.float32, out_H: Array) -> None:
    """RMS norm (Zhang and Sennrich 2019, arXiv 1910.07467): `x / sqrt(mean(x²) + eps) * weight`."""
    size = len(x_H)
    squares = np.float32(0)
    for i in range(size):
        value = widen(x_H[i])
        squares += value * value
    scale = np.float32(1) / np.sqrt(squares / np.float32(size) + np.float32(eps))
    for i in range(size):
        out_H[i] = narrow(widen(x_H[i]) * scale * weight_H[i], out_H)
