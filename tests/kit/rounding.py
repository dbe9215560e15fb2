"""How far apart two passes of a decoder may be that differ in rounding alone, from the arithmetic of their type.

Torch's own result in a short type is no reference: which sums are rounded to it, and when, differs from processor to
processor. So a pass is compared with one in float64, row by row, by norms: single logits near zero have no relative
exactness.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LAYER, _LAST = 13, 2
_ATTENTION = 8


def gap_of_rows(got: Tensor, exact: Tensor) -> float:
    """The greatest distance of a row `[..., N]`, as a share of the exact row's norm."""
    exact = exact.double()
    return float(((got.double() - exact).norm(dim=-1) / exact.norm(dim=-1)).amax())


def rounding_gap(dtype: torch.dtype, *, num_roundings: int, num_terms: int) -> float:
    """The gap that rounding explains, as if all errors pointed the same way.

    A rounding moves a number by `u` of it at most, half the type's `eps`, so each one in a row of them adds `u` to a
    vector's gap. In types shorter than float32, sums are kept in float32 and rounded once. In float32 each of a sum's
    terms is added with a rounding of its own, of either sign: together as much as the square root of their number.

    Args:
        dtype: of weights and vectors.
        num_roundings: how often vectors are rounded to it, one after another.
        num_terms: of the longest sum.
    """
    in_a_sum = float(num_terms) ** 0.5 if dtype == torch.float32 else 1.0
    return num_roundings * in_a_sum * torch.finfo(dtype).eps / 2


def decoder_gap(dtype: torch.dtype, *, num_layers: int, num_terms: int) -> float:
    """The same of a decoder's logits. Layers hardly enlarge a gap, since each begins with a norm.

    A layer rounds 13 vectors one after another: the norm, projected heads, turned heads, scores, shares, what was seen,
    its projection, the stream; the norm, gates and ups, what is gated, its projection, the stream. After the last one
    there are the norm and the logits.
    """
    return rounding_gap(dtype, num_roundings=_LAYER * num_layers + _LAST, num_terms=num_terms)


def attention_gap(dtype: torch.dtype, *, num_seen: int) -> float:
    """The same of attention: queries and keys, turned by two products and a sum each, shares, and their mean."""
    return rounding_gap(dtype, num_roundings=_ATTENTION, num_terms=num_seen)
