"""Linear projections of a fused model, which combine several of transformers' in one matrix product.

Shapes: O outputs, I inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ByteCodes(NamedTuple):
    """Weights quantised to eight bits: `codes * steps`."""

    codes_OI: Tensor
    steps_O: Tensor
    """float32: one per output."""

    @classmethod
    def of(cls, weight_OI: Tensor) -> ByteCodes:
        """Quantise weights, to nearest."""
        steps_O = weight_OI.abs().amax(dim=1).float().clamp(min=torch.finfo(torch.float32).tiny) / 127
        return cls((weight_OI / steps_O[:, None]).round_().to(torch.int8), steps_O)


class DenseProjection:
    """A projection in torch's own layout.

    Args:
        weight_OI: the weights.
        bias_O: the bias, if any.
        codes: the same weights quantised; products of few rows may use these instead.
    """

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None = None, codes: ByteCodes | None = None) -> None:
        self.weight_OI, self.bias_O, self.codes = weight_OI, bias_O, codes

    def __call__(self, x: Tensor) -> Tensor:
        """Apply it to any number of rows."""
        return F.linear(x, self.weight_OI, self.bias_O)


def fuse(*linears: nn.Linear) -> DenseProjection:
    """One projection for several linears. Their weights become views of its rows, so no memory is used twice."""
    if len(linears) == 1:
        bias = linears[0].bias
        return DenseProjection(linears[0].weight.detach(), None if bias is None else bias.detach())
    weight_OI = _whole(linears)
    bias_O = None if linears[0].bias is None else torch.cat([linear.bias.detach() for linear in linears])
    fused = DenseProjection(weight_OI, bias_O)
    share(fused, linears)
    return fused


def _whole(linears: Sequence[nn.Linear]) -> Tensor:
    """The linears' weights concatenated: a copy, unless `share` made them parts of one tensor before."""
    weights = [linear.weight.detach() for linear in linears]
    first, num_outputs, end = weights[0], 0, weights[0].data_ptr()
    for one in weights:
        is_next = one.is_contiguous() and one.data_ptr() == end
        if not is_next or one.untyped_storage().data_ptr() != first.untyped_storage().data_ptr():
            return torch.cat(weights)
        num_outputs, end = num_outputs + len(one), end + one.nbytes
    return first.as_strided((num_outputs, first.shape[1]), first.stride())


def share(fused: DenseProjection, linears: Sequence[nn.Linear]) -> None:
    """Make the linears' weights views of the projection's rows, in order."""
    start = 0
    for linear in linears:
        end = start + linear.out_features
        linear.weight = nn.Parameter(fused.weight_OI[start:end], requires_grad=False)
        if fused.bias_O is not None:
            linear.bias = nn.Parameter(fused.bias_O[start:end], requires_grad=False)
        start = end
