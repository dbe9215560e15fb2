"""Bounds for the difference between two correct passes of a decoder, from the rounding of their dtype.

Torch's own result in a short dtype is no reference, since processors round at different places. Passes are therefore
compared with float64, row by row by norm; single logits near zero have no meaningful relative error.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LAYER, _LAST = 13, 2
_ATTENTION = 8


def gap_of_rows(got: Tensor, exact: Tensor) -> float:
    """The largest distance of a row `[..., N]` from the exact row, relative to the exact row's norm."""
    exact = exact.double()
    return float(((got.double() - exact).norm(dim=-1) / exact.norm(dim=-1)).amax())


def rounding_gap(dtype: torch.dtype, *, num_roundings: int, num_terms: int) -> float:
    """The gap that rounding explains, if all errors add up.

    One rounding changes a number by at most `u`, half of the dtype's `eps`, so each successive rounding adds `u` to a
    vector's gap. In dtypes shorter than float32, sums are kept in float32 and rounded once. In float32 each addition
    rounds, with either sign, which adds up to the square root of the number of terms.

    Args:
        dtype: of weights and vectors.
        num_roundings: number of successive roundings of a vector.
        num_terms: of the longest sum.
    """
    in_a_sum = float(num_terms) ** 0.5 if dtype == torch.float32 else 1.0
    return num_roundings * in_a_sum * torch.finfo(dtype).eps / 2


def decoder_gap(dtype: torch.dtype, *, num_layers: int, num_terms: int) -> float:
    """The gap that rounding explains for a decoder's logits. Norms keep gaps from growing through the layers.

    A layer rounds 13 vectors in succession: norm, projected heads, rotated heads, scores, softmax, attention, its
    projection, the residual stream; norm, gate and up, their product, its projection, the stream. After the last layer
    follow the final norm and the logits.
    """
    return rounding_gap(dtype, num_roundings=_LAYER * num_layers + _LAST, num_terms=num_terms)


def attention_gap(dtype: torch.dtype, *, num_seen: int) -> float:
    """The gap that rounding explains for attention: rotation of queries and keys, softmax, and the weighted mean."""
    return rounding_gap(dtype, num_roundings=_ATTENTION, num_terms=num_seen)
