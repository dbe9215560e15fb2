"""How far apart two passes of a decoder may be that differ in rounding alone, from the arithmetic of their type.

Torch's own result in a short type is no reference: which sums are rounded to it, and when, differs from processor to
processor. So a pass is compared with one in float64, row by row, by norms: single logits near zero have no relative
exactness.
"""

from __future__ import annotations

import torch
from torch import Tensor

_ROUNDINGS_OF_LAYER = 13
"""Vectors that are rounded to the type one after another: norm, projected heads, turned heads, scores, shares, what was
seen, its projection, the stream; norm, gates and ups, gated, their projection, the stream."""
_OTHER_ROUNDINGS = 2
"""The last norm, and the logits."""


def gap_of_rows(got: Tensor, exact: Tensor) -> float:
    """The greatest distance of a row `[..., N]`, as a share of the exact row's norm."""
    exact = exact.double()
    return float(((got.double() - exact).norm(dim=-1) / exact.norm(dim=-1)).amax())


def rounding_gap(dtype: torch.dtype, *, num_layers: int, num_terms: int) -> float:
    """The gap that rounding explains, as if all errors of a pass pointed the same way.

    A rounding moves a number by `u` of it at most, half the type's `eps`. Each one in a row of them adds that much to
    a vector's gap; layers neither shrink nor enlarge it much, since each begins with a norm. In types shorter than
    float32, sums are kept in float32 and rounded once. In float32 each of a sum's terms is added with a rounding of
    its own, of either sign: together as much as the square root of their number.

    Args:
        dtype: of weights and vectors.
        num_layers: of the decoder.
        num_terms: of the longest sum.
    """
    num_roundings = _ROUNDINGS_OF_LAYER * num_layers + _OTHER_ROUNDINGS
    in_a_sum = float(num_terms) ** 0.5 if dtype == torch.float32 else 1.0
    return num_roundings * in_a_sum * torch.finfo(dtype).eps / 2
