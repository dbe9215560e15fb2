"""Linear projections of a fused model: several of transformers' in one matrix product, in the layout the CPU likes.

Shapes: O outputs, I inputs.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Projection(Protocol):
    """`x @ weight.T + bias`."""

    def __call__(self, x: Tensor) -> Tensor:
        """Of any number of rows."""
        ...

    def added_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """`residual + self(x)`."""
        ...


class DenseProjection:
    """In torch's own layout."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None = None) -> None:
        self.weight_OI, self.bias_O = weight_OI, bias_O

    def __call__(self, x: Tensor) -> Tensor:
        """Of any number of rows."""
        return F.linear(x, self.weight_OI, self.bias_O)

    def added_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """`residual + self(x)`."""
        return residual + self(x)


class PackedProjection:
    """bfloat16 on a CPU, with the weights in oneDNN's blocked layout.

    At the few rows of a decoding pass, reading the weights is all the time there is; in this layout they are read at
    the memory's speed (docs/decisions.md has the measurements). The operators are those of torch's own compiler.
    """

    def __init__(self, dense: DenseProjection) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(dense.weight_OI, 1)
        self._bias_O = dense.bias_O

    def __call__(self, x: Tensor) -> Tensor:
        """Of any number of rows."""
        projected: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias_O, "none", [], "")
        return projected

    def added_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """`residual + self(x)`, in one operation."""
        added: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, residual, self._weight, self._bias_O, "add")
        return added


def pack(dense: DenseProjection) -> Projection:
    """The same projection in the fastest layout there is for frozen weights; a copy, unless it is `dense` itself."""
    weight_OI = dense.weight_OI
    can_pack = weight_OI.device.type == "cpu" and weight_OI.dtype == torch.bfloat16
    has_onednn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]  # torch left it untyped
    if can_pack and has_onednn and hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return PackedProjection(dense)
    return dense


def fuse(*linears: nn.Linear) -> DenseProjection:
    """One projection for all of them. Their own weights become views of its rows, so nothing is held twice."""
    if len(linears) == 1:
        bias = linears[0].bias
        return DenseProjection(linears[0].weight.detach(), None if bias is None else bias.detach())
    weight_OI = torch.cat([linear.weight.detach() for linear in linears])
    bias_O = None
    if linears[0].bias is not None:
        bias_O = torch.cat([linear.bias.detach() for linear in linears])
    start = 0
    for linear in linears:
        end = start + linear.out_features
        linear.weight = nn.Parameter(weight_OI[start:end], requires_grad=False)
        if bias_O is not None:
            linear.bias = nn.Parameter(bias_O[start:end], requires_grad=False)
        start = end
    return DenseProjection(weight_OI, bias_O)
