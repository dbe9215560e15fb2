"""Matrix products of few rows at memory bandwidth, fused with the operations before and after them in a layer.

A decoding pass multiplies few rows with every weight, so its time is that of reading the weights. Each program computes
a few outputs; its warps divide the inputs among them, so that many loads are in flight, and no program waits for
another. A norm before the product is split into two factors: its weights were multiplied in by the kernel that wrote
the rows, and the rows' norms are only needed at the end.

Shapes: R rows, I inputs, O outputs, T tiles of outputs, H hidden size.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from osd.kernels.reference.projections import DenseProjection

MOST_ROWS = 16
"""With more rows, a library's product is faster."""
_NUM_WARPS = 4


class Residual(NamedTuple):
    """The residual stream between two products, prepared for the norm at the beginning of the next one."""

    rows_RH: Tensor
    scaled_RH: Tensor
    """The stream times that norm's weights."""
    squares_TR: Tensor
    """float32: the sum of squares of each tile of a row; rows are padded to whole tiles."""


class _Tile(NamedTuple):
    """Tile sizes: a program reads, in one step, the weights of `outputs` outputs for `4 * inputs` inputs."""

    outputs: int
    inputs: int
    num_stages: int


# Fastest on an H200, with 4,096 to 14,336 inputs and 1 to 16 rows.
_TILE, _GATED_TILE, _WIDE_TILE = _Tile(16, 128, 3), _Tile(8, 128, 3), _Tile(32, 64, 4)
_WIDE_OUTPUTS = 32_768


@triton.jit
def _weights(place, is_there, IS_EVEN: tl.constexpr):
    """Load weights with a hint that they are read only once."""
    if IS_EVEN:
        return tl.load(place, eviction_policy="evict_first")
    return tl.load(place, mask=is_there, other=0.0, eviction_policy="evict_first")


# Not specialised, so that kernels are not recompiled for every number of rows.
@triton.jit(do_not_specialize=["num_rows", "num_tiles"])
def _product(
    inputs, weights, steps, bias, squares, residual, next_norm, outputs, next_scaled, next_squares, num_rows,
    num_outputs, num_inputs, num_tiles, eps, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, PARTS: tl.constexpr,
    INPUTS: tl.constexpr, TILES: tl.constexpr, STAGES: tl.constexpr, IS_EVEN: tl.constexpr, HAS_STEPS: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_NORM: tl.constexpr, IS_GATED: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
    HAS_NEXT: tl.constexpr
):  # fmt: skip
    """Some outputs of all rows. Programs `[O / OUTPUTS]`; a gated product's second half of weights is further down."""
    o = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    r = tl.arange(0, ROWS)
    i = tl.arange(0, PARTS)[:, None] * INPUTS + tl.arange(0, INPUTS)[None, :]
    is_row, is_output = r < num_rows, o < num_outputs
    weight = weights + tl.minimum(o, num_outputs - 1).to(tl.int64)[None, None, :] * num_inputs + i[:, :, None]
    row = inputs + r[None, :, None] * num_inputs + i[:, None, :]
    to_second = num_outputs.to(tl.int64) * num_inputs
    place = r[:, None] * num_outputs + o[None, :]
    is_place = is_row[:, None] & is_output[None, :]
    # Loads that are needed at the end are issued early.
    if HAS_STEPS:
        step = tl.load(steps + o, mask=is_output, other=0.0)[None, :]
        if IS_GATED:
            second_step = tl.load(steps + num_outputs + o, mask=is_output, other=0.0)[None, :]
    if HAS_BIAS:
        shift = tl.load(bias + o, mask=is_output, other=0.0).to(tl.float32)[None, :]
    if HAS_RESIDUAL:
        before = tl.load(residual + place, mask=is_place, other=0.0).to(tl.float32)
    if HAS_NEXT:
        norm = tl.load(next_norm + o, mask=is_output, other=0.0).to(tl.float32)[None, :]
    if HAS_NORM:
        t = tl.arange(0, TILES)
        is_there = (t < num_tiles)[:, None] & is_row[None, :]
        of_tiles = tl.load(squares + t[:, None] * ROWS + r[None, :], mask=is_there, other=0.0)
    sums = tl.zeros([PARTS, ROWS, OUTPUTS], tl.float32)
    seconds = tl.zeros([PARTS, ROWS, OUTPUTS], tl.float32)
    for first in tl.range(0, num_inputs, PARTS * INPUTS, num_stages=STAGES):
        is_input = i < num_inputs - first
        x = tl.load(row + first, mask=is_row[None, :, None] & (is_input[:, None, :] | IS_EVEN), other=0.0)
        w = _weights(weight + first, is_input[:, :, None], IS_EVEN)
        sums = tl.dot(x, w.to(x.dtype), sums, input_precision="ieee")
        if IS_GATED:
            w = _weights(weight + to_second + first, is_input[:, :, None], IS_EVEN)
            seconds = tl.dot(x, w.to(x.dtype), seconds, input_precision="ieee")
    sum_, second = tl.sum(sums, 0), tl.sum(seconds, 0)
    if HAS_STEPS:
        sum_ *= step
        if IS_GATED:
            second *= second_step
    if HAS_NORM:
        scale = tl.rsqrt(tl.sum(of_tiles, 0) / num_inputs + eps)[:, None]
        sum_, second = sum_ * scale, second * scale
    if HAS_BIAS:
        sum_ += shift
    kind = outputs.dtype.element_ty
    if IS_GATED:
        sum_ = sum_.to(kind).to(tl.float32)
        sum_ = (sum_ / (1.0 + tl.exp(-sum_))).to(kind).to(tl.float32) * second.to(kind).to(tl.float32)
    if HAS_RESIDUAL:
        sum_ = sum_.to(kind).to(tl.float32) + before
    tl.store(outputs + place, sum_.to(kind), mask=is_place)
    if HAS_NEXT:
        kept = tl.where(is_place, sum_.to(kind).to(tl.float32), 0.0)
        tl.store(next_scaled + place, (kept * norm).to(kind), mask=is_place)
        tl.store(next_squares + tl.program_id(0) * ROWS + r, tl.sum(kept * kept, 1))


def product(
    inputs_RI: Tensor,
    projection: DenseProjection,
    *,
    squares_TR: Tensor | None = None,
    eps: float = 0.0,
    is_gated: bool = False,
) -> Tensor:
    """`inputs @ weight.T + bias`, `[R, O]`.

    Args:
        inputs_RI: at most `MOST_ROWS` rows, contiguous.
        projection: contiguous; its quantised weights are used if it has them.
        squares_TR: of a `Residual` whose scaled rows are the inputs: applies the norm, with `eps`.
        eps: of that norm.
        is_gated: the outputs are `silu(first half) * second half`, `[R, O / 2]`; there must be no bias.
    """
    return _launch(inputs_RI, projection, squares_TR=squares_TR, eps=eps, is_gated=is_gated).rows_RH


def product_onto(
    inputs_RI: Tensor, projection: DenseProjection, residual_RH: Tensor | None, next_norm_H: Tensor
) -> Residual:
    """A product added to the residual stream (None: it starts the stream), prepared for the next norm."""
    return _launch(inputs_RI, projection, residual=residual_RH, next_norm=next_norm_H)


def _launch(
    inputs_RI: Tensor,
    projection: DenseProjection,
    *,
    squares_TR: Tensor | None = None,
    eps: float = 0.0,
    is_gated: bool = False,
    residual: Tensor | None = None,
    next_norm: Tensor | None = None,
) -> Residual:
    codes = projection.codes
    weights_OI, bias = projection.weight_OI if codes is None else codes.codes_OI, projection.bias_O
    num_rows, num_inputs = inputs_RI.shape
    num_outputs = len(weights_OI) // 2 if is_gated else len(weights_OI)
    tile = _GATED_TILE if is_gated else _WIDE_TILE if num_outputs >= _WIDE_OUTPUTS else _TILE
    rows, num_programs = padded_rows(num_rows), triton.cdiv(num_outputs, tile.outputs)
    outputs_RO = inputs_RI.new_empty(num_rows, num_outputs)
    next_scaled, next_squares = outputs_RO, outputs_RO
    if next_norm is not None:
        next_scaled = torch.empty_like(outputs_RO)
        next_squares = inputs_RI.new_empty(num_programs, rows, dtype=torch.float32)
    num_tiles = most_tiles = 1
    if squares_TR is not None:  # the number of tiles is rounded up, so that few variants are compiled
        num_tiles, most_tiles = len(squares_TR), triton.next_power_of_2(triton.cdiv(num_inputs, _TILE.outputs))
    steps = None if codes is None else codes.steps_O
    # Pointers to absent tensors are never used, but must be valid arguments.
    read = [outputs_RO if one is None else one for one in (steps, bias, squares_TR, residual, next_norm)]
    _product[(num_programs,)](
        inputs_RI, weights_OI, *read, outputs_RO, next_scaled, next_squares, num_rows, num_outputs, num_inputs,
        num_tiles, eps, ROWS=rows, OUTPUTS=tile.outputs, PARTS=_NUM_WARPS, INPUTS=tile.inputs,
        TILES=most_tiles, STAGES=tile.num_stages,
        IS_EVEN=num_inputs % (_NUM_WARPS * tile.inputs) == 0, HAS_STEPS=codes is not None, HAS_BIAS=bias is not None,
        HAS_NORM=squares_TR is not None, IS_GATED=is_gated, HAS_RESIDUAL=residual is not None,
        HAS_NEXT=next_norm is not None, num_warps=_NUM_WARPS,
    )  # fmt: skip
    return Residual(outputs_RO, next_scaled, next_squares)


def padded_rows(num_rows: int) -> int:
    """The side of a tile that holds `num_rows` rows."""
    return 8 if num_rows <= 8 else 16
