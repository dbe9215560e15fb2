"""A tile's sums where the weights are codes, as `osd.models.compiled.codes` lays them out.

A weight is `low + code * step`, the same low and step for 32 inputs. So a row's sum over them is
`step * sum(code * x) + low * sum(x)`: the codes are multiplied as they are, and scaled once for 32. As bfloat16, a code
costs a shift, a mask and an or: with exponent bits set it reads as 128 + code, and what is too much is part of the low.

Shapes: R rows, I inputs, B = I / 32 blocks, W = 32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from osd.models.compiled.bits import Array, apart, widen
from osd.models.compiled.codes import BLOCK, MOST, SCALES_BYTES
from osd.models.compiled.tile import start_from_biases, store_sums
from osd.models.compiled.tiling import STEP_BYTES, WIDTH
from osd.models.compiled.vectors import (
    FLOAT,
    FLOATS,
    HALVES,
    INT32,
    INT64,
    INTS,
    VECTOR_BYTES,
    Code,
    for_each_number_of_rows,
)

_NUM_HALVES = 2
_AHEAD_BYTES = 4608
"""A processor looks ahead by itself, but not far enough past work of this kind: a fifth more bytes a second."""
_EXCESS = 128.0
_EXPONENT, _ONES = 0x4300_4300, 0x0001_0001
"""Two bfloat16 of 128, whose last seven bits count ones."""


def _tile(bits: int) -> Any:
    block_bytes = SCALES_BYTES + WIDTH * BLOCK * bits // 8

    @intrinsic
    def tile(
        typing: Any,
        weights: Any,
        x: Any,
        x_stride: Any,
        sums: Any,
        sums_stride: Any,
        out: Any,
        out_stride: Any,
        num_blocks: Any,
        num_rows: Any,
    ) -> Any:
        """As in `osd.models.compiled.tile`; `sums` are the rows' own over each block."""

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            _generate(builder, args, bits, block_bytes)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 9), generate

    return tile


def _generate(builder: Any, args: Any, bits: int, block_bytes: int) -> None:
    weights, x, x_stride, x_sums, x_sums_stride, out, out_stride, num_blocks, num_rows = args

    def write(code: Code, rows: int) -> None:
        sums, in_block = code.variables(rows, _NUM_HALVES), code.variables(rows, _NUM_HALVES)
        start_from_biases(code, sums, weights)
        with cgutils.for_range(builder, num_blocks) as loop:
            block = code.plus(code.plus(weights, WIDTH, STEP_BYTES), loop.index, block_bytes)
            code.prefetch(code.plus(block, _AHEAD_BYTES), block_bytes)
            inputs = [code.plus(code.plus(x, x_stride, row), loop.index, 2 * BLOCK) for row in range(rows)]
            _sum_codes(code, in_block, code.plus(block, SCALES_BYTES), inputs, bits)
            for half in range(_NUM_HALVES):
                step, low = (
                    builder.fpext(code.load(code.plus(block, part + half * 32), HALVES), FLOATS)
                    for part in (0, VECTOR_BYTES)
                )
                low = code.add_product(step, ir.Constant(FLOATS, [-_EXCESS] * 16), low)
                for row in range(rows):
                    place = code.plus(code.plus(x_sums, x_sums_stride, row), loop.index, 4)
                    x_sum = code.repeated(code.load(place, FLOAT), FLOATS)
                    variable = sums[row][half]
                    scaled = code.add_product(builder.load(in_block[row][half]), step, builder.load(variable))
                    builder.store(code.add_product(x_sum, low, scaled), variable)
        store_sums(code, sums, out, out_stride)

    for_each_number_of_rows(builder, num_rows, write)


def _sum_codes(code: Code, in_block: list[list[Any]], codes: Any, inputs: list[Any], bits: int) -> None:
    """Every row's sums of `(128 + code) * x` over one block."""
    builder, in_lane = code.builder, 16 // bits
    for halves in in_block:
        for variable in halves:
            builder.store(ir.Constant(FLOATS, None), variable)
    with cgutils.for_range(builder, ir.Constant(INT64, BLOCK // 2 // in_lane)) as groups:
        group = code.plus(codes, groups.index, _NUM_HALVES * VECTOR_BYTES)
        vectors = [code.load(code.plus(group, half, VECTOR_BYTES), INTS) for half in range(_NUM_HALVES)]
        steps = [code.plus(row, groups.index, in_lane * STEP_BYTES) for row in inputs]
        for number in range(in_lane):
            left = []
            for vector in vectors:
                shifted = builder.lshr(vector, ir.Constant(INTS, [bits * number] * 16))
                masked = builder.and_(shifted, ir.Constant(INTS, [MOST[bits] * _ONES] * 16))
                left.append(builder.or_(masked, ir.Constant(INTS, [_EXPONENT] * 16)))
            for row, halves in enumerate(in_block):
                right = code.repeated(code.load(code.plus(steps[row], number, STEP_BYTES), INT32), INTS)
                for half, variable in enumerate(halves):
                    builder.store(code.dot_pairs(left[half], right, builder.load(variable)), variable)


_tile_4, _tile_8 = _tile(4), _tile(8)


def sums_codes(x_RI: Array, x_sums_RB: Array, bits: int, weights: int, out_RW: Array) -> None:
    """Of up to `ROWS` rows and the tile at an address, in float32."""
    raise NotImplementedError("compiled only")  # the overload below takes its place


@overload(sums_codes)
def _sums_codes(x_RI, x_sums_RB, bits, weights, out_RW):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202 - see `bits`
    if isinstance(x_RI.dtype, types.Float):  # never called: codes are multiplied as bfloat16
        return lambda x_RI, x_sums_RB, bits, weights, out_RW: None

    def either(x_RI, x_sums_RB, bits, weights, out_RW):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202 - as above
        x, x_stride = x_RI.ctypes.data, x_RI.strides[0]
        sums, sums_stride = x_sums_RB.ctypes.data, x_sums_RB.strides[0]
        out, out_stride, num_blocks = out_RW.ctypes.data, out_RW.strides[0], x_RI.shape[1] // BLOCK
        if bits == 4:
            _tile_4(weights, x, x_stride, sums, sums_stride, out, out_stride, num_blocks, len(x_RI))
        else:
            _tile_8(weights, x, x_stride, sums, sums_stride, out, out_stride, num_blocks, len(x_RI))

    return either


@apart
def block_sums(x_RI: Array) -> Array:
    """Every row's sum over each block, `[R, B]`, by halves."""
    sums_RB = np.empty((len(x_RI), x_RI.shape[1] // BLOCK), np.float32)
    sums_K = np.empty(BLOCK, np.float32)
    for row in range(len(x_RI)):
        for block in range(sums_RB.shape[1]):
            x_K = x_RI[row, block * BLOCK : (block + 1) * BLOCK]
            for i in range(BLOCK):
                sums_K[i] = widen(x_K[i])
            half = BLOCK // 2
            while half > 0:
                for i in range(half):
                    sums_K[i] += sums_K[half + i]
                half //= 2
            sums_RB[row, block] = sums_K[0]
    return sums_RB
