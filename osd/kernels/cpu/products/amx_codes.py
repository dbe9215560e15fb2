"""Tile products of quantised weights by matrix instructions (`osd.kernels.cpu.products.amx`), up to 32 rows at once.

A block's 32 inputs fill a row of a register, so one instruction multiplies a whole block. Quantised weights are
expanded to bfloat16 once for all rows; the products are scaled and added by vector instructions.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils

from osd.kernels.cpu.products import amx
from osd.kernels.cpu.products.amx import MatrixCode, int64
from osd.kernels.cpu.products.code_vectors import AHEAD_BYTES, NUM_HALVES, as_pairs, block_bytes, scales
from osd.kernels.cpu.products.codes import BLOCK, SCALES_BYTES
from osd.kernels.cpu.products.tiling import STEP_BYTES, WIDTH
from osd.kernels.cpu.products.vectors import FLOAT, FLOATS, INT64, INTS, VECTOR_BYTES

ROWS = amx.ROWS
_STEPS = BLOCK // 2
_ROW_BYTES = NUM_HALVES * VECTOR_BYTES
_SUMS, _X, _PAIRS = ((0, 1), (2, 3)), (4, 5), (6, 7)
"""Registers of sums and inputs for the first sixteen rows and the next, and of weights for the tile's two halves."""


def write_tile(builder: Any, args: Any, bits: int) -> None:
    """Generate the body of `tile` in `osd.kernels.cpu.products.tile_codes`, for up to `ROWS` rows."""
    weights, x, x_stride, x_sums, x_sums_stride, out, out_stride, num_blocks, num_rows = args
    code = MatrixCode(builder)
    has_more = builder.icmp_signed(">", num_rows, int64(amx.REGISTER_ROWS))
    num_more = builder.select(has_more, builder.sub(num_rows, int64(amx.REGISTER_ROWS)), int64(0))
    first = builder.sub(num_rows, num_more), int64(VECTOR_BYTES)
    more = num_more, builder.select(has_more, int64(VECTOR_BYTES), int64(0))
    code.configure(
        {
            **dict.fromkeys((*_SUMS[0], _X[0]), first),
            **dict.fromkeys((*_SUMS[1], _X[1]), more),
            **dict.fromkeys(_PAIRS, (int64(_STEPS), int64(VECTOR_BYTES))),
        }
    )
    pairs, products = _room(builder, NUM_HALVES * _STEPS), _room(builder, NUM_HALVES * ROWS)
    biases = [code.load(code.plus(weights, half, VECTOR_BYTES), FLOATS) for half in range(NUM_HALVES)]
    with cgutils.for_range(builder, num_rows) as rows:
        for bias, place in zip(biases, _vectors(code, out, out_stride, rows.index), strict=True):
            code.store(bias, place)

    def multiply(inputs: Any, group: int) -> None:
        code.fill(_X[group], code.plus(inputs, x_stride, group * amx.REGISTER_ROWS), x_stride)
        for half, register in enumerate(_SUMS[group]):
            code.call("tilezero", register)
            code.call("tdpbf16ps", register, _X[group], _PAIRS[half])
            place = code.plus(products, group * amx.REGISTER_ROWS * NUM_HALVES + half, VECTOR_BYTES)
            code.call("tilestored64", register, code.pointer(place), int64(_ROW_BYTES))

    with cgutils.for_range(builder, num_blocks) as blocks:
        block = code.plus(code.plus(weights, WIDTH, STEP_BYTES), blocks.index, block_bytes(bits))
        code.prefetch(code.plus(block, AHEAD_BYTES), block_bytes(bits))
        _expand(code, code.plus(block, SCALES_BYTES), pairs, bits)
        for half, register in enumerate(_PAIRS):
            code.fill(register, code.plus(pairs, half * _STEPS, VECTOR_BYTES), int64(VECTOR_BYTES))
        inputs = code.plus(x, blocks.index, VECTOR_BYTES)
        multiply(inputs, 0)
        with builder.if_then(has_more):
            multiply(inputs, 1)
        of_halves = [scales(code, block, half) for half in range(NUM_HALVES)]
        with cgutils.for_range(builder, num_rows) as rows:
            x_sum_place = code.plus(builder.add(x_sums, builder.mul(x_sums_stride, rows.index)), blocks.index, 4)
            x_sum = code.repeated(code.load(x_sum_place, FLOAT), FLOATS)
            sources = _vectors(code, products, int64(_ROW_BYTES), rows.index)
            for half, place in enumerate(_vectors(code, out, out_stride, rows.index)):
                step, low = of_halves[half]
                scaled = code.add_product(code.load(sources[half], FLOATS), step, code.load(place, FLOATS))
                code.store(code.add_product(x_sum, low, scaled), place)
    code.call("tilerelease")


def _expand(code: MatrixCode, codes: Any, pairs: Any, bits: int) -> None:
    """Expand a block's quantised weights to pairs of bfloat16, step by step, first for one half, then for the other."""
    in_lane = 16 // bits
    for group in range(_STEPS // in_lane):
        for half in range(NUM_HALVES):
            vector = code.load(code.plus(codes, group * NUM_HALVES + half, VECTOR_BYTES), INTS)
            for number, pair in enumerate(as_pairs(code, vector, bits)):
                place = code.plus(pairs, half * _STEPS + group * in_lane + number, VECTOR_BYTES)
                code.store(code.builder.bitcast(pair, FLOATS), place)


def _room(builder: Any, num_vectors: int) -> Any:
    """The address of `num_vectors` vectors on the stack."""
    room = cgutils.alloca_once(builder, ir.ArrayType(FLOATS, num_vectors))
    return builder.ptrtoint(room, INT64)


def _vectors(code: MatrixCode, address: Any, stride: Any, row: Any) -> list[Any]:
    """The addresses of a row's vectors."""
    start = code.builder.add(address, code.builder.mul(stride, row))
    return [code.plus(start, half, VECTOR_BYTES) for half in range(NUM_HALVES)]
