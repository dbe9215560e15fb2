"""The product of a tile of quantised weights (`osd.kernels.cpu.products.codes`) with a few rows.

Shapes: R rows, I inputs, B = I / 32 blocks, W = 32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from osd.kernels.cpu.bits import Array, compiled, inlined, widen
from osd.kernels.cpu.products import amx_codes
from osd.kernels.cpu.products.amx import HAS_AMX
from osd.kernels.cpu.products.blocking import BLOCKING, Blocking
from osd.kernels.cpu.products.code_vectors import AHEAD_BYTES, NUM_HALVES, as_pairs, block_bytes, scales
from osd.kernels.cpu.products.codes import BLOCK, SCALES_BYTES
from osd.kernels.cpu.products.tile import places_of, start_from_biases, store_sums
from osd.kernels.cpu.products.tiling import STEP_BYTES, WIDTH
from osd.kernels.cpu.products.vectors import (
    FLOAT,
    FLOATS,
    INT32,
    INT64,
    INTS,
    VECTOR_BYTES,
    Code,
    for_each_number_of_rows,
)

_Vectors: TypeAlias = list[list[Any]]
"""Vectors by row and half; variables or values."""
_SumCodes: TypeAlias = Callable[[Code, Any, list[Any], int, range], _Vectors]
_Add: TypeAlias = Callable[[list[Any], Callable[[Any, int], Any]], None]
_FEW = 1
"""Up to this many rows, vector instructions are faster than matrix instructions."""


def tile_of(bits: int, *, has_amx: bool, blocking: Blocking = BLOCKING) -> Any:
    """The intrinsic that multiplies a tile of `bits`-bit weights with rows, by one kind of instructions."""

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
        """Takes addresses, and strides in bytes, as in `tile.py`; `sums` are each row's input sums by block."""

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            if has_amx:
                few = builder.icmp_signed("<=", args[-1], ir.Constant(INT64, _FEW))
                with builder.if_else(few) as (then, otherwise):
                    with then:
                        _write_tile(builder, args, bits, blocking, _FEW, _sum_apart)
                    with otherwise:
                        amx_codes.write_tile(builder, args, bits)
            else:
                by = _sum_by_instruction if blocking.dots_pairs else _sum_widened
                _write_tile(builder, args, bits, blocking, blocking.rows, by)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 9), generate

    return tile


def _write_tile(builder: Any, args: Any, bits: int, blocking: Blocking, most: int, sum_codes: _SumCodes) -> None:
    """Generate the product by vector instructions, for up to `most` rows."""
    weights, x, x_stride, x_sums, x_sums_stride, out, out_stride, num_blocks, num_rows = args

    def add(
        code: Code, sums: list[list[Any]], block: Any, index: Any, in_block: list[list[Any]], halves: range
    ) -> None:
        """Add a block's products, scaled."""
        for number, half in enumerate(halves):
            step, low = scales(code, block, half)
            for row, variables in enumerate(sums):
                place = code.plus(code.plus(x_sums, x_sums_stride, row), index, 4)
                x_sum = code.repeated(code.load(place, FLOAT), FLOATS)
                variable = variables[number]
                scaled = code.add_product(in_block[row][number], step, builder.load(variable))
                builder.store(code.add_product(x_sum, low, scaled), variable)

    def write(code: Code, rows: int) -> None:
        sums, is_whole = code.variables(rows, NUM_HALVES), rows <= blocking.whole_rows
        start_from_biases(code, sums, weights)
        if not is_whole:
            store_sums(code, sums, out, out_stride)
        with cgutils.for_range(builder, num_blocks) as loop:
            block = code.plus(code.plus(weights, WIDTH, STEP_BYTES), loop.index, block_bytes(bits))
            code.prefetch(code.plus(block, AHEAD_BYTES), block_bytes(bits))
            codes = code.plus(block, SCALES_BYTES)
            inputs = [code.plus(code.plus(x, x_stride, row), loop.index, 2 * BLOCK) for row in range(rows)]
            if is_whole:
                halves = range(NUM_HALVES)
                add(code, sums, block, loop.index, sum_codes(code, codes, inputs, bits, halves), halves)
            else:
                inputs = [code.widened(address) for address in inputs]
                for half in range(NUM_HALVES):
                    halves = range(half, half + 1)
                    places = [[one[half]] for one in places_of(code, out, out_stride, rows)]
                    in_block, some = _sum_floats(code, codes, inputs, bits, halves), code.loaded(places)
                    add(code, some, block, loop.index, in_block, halves)
                    code.stored(some, places)
        if is_whole:
            store_sums(code, sums, out, out_stride)

    for_each_number_of_rows(builder, num_rows, write, most)


def _sum_by_instruction(code: Code, codes: Any, inputs: list[Any], bits: int, halves: range) -> _Vectors:
    """Every row's sums of `(128 + code) * x` over one block, by half, with the instruction for pairs of bfloat16."""
    return _sum_pairs(code, codes, inputs, bits, halves, by_instruction=True)


def _sum_widened(code: Code, codes: Any, inputs: list[Any], bits: int, halves: range) -> _Vectors:
    """The same sums without that instruction: pairs become float32, and inputs are widened for every vector."""
    return _sum_pairs(code, codes, inputs, bits, halves, by_instruction=False)


def _sum_pairs(
    code: Code, codes: Any, inputs: list[Any], bits: int, halves: range, *, by_instruction: bool
) -> _Vectors:
    sums = code.variables(len(inputs), len(halves))

    def add(left: list[Any], place_in: Callable[[Any, int], Any]) -> None:
        for address, variables in zip(inputs, sums, strict=True):
            right = code.repeated(code.load(place_in(address, STEP_BYTES), INT32), INTS)
            for pairs, variable in zip(left, variables, strict=True):
                dot = code.dot_pairs(pairs, right, code.builder.load(variable), by_instruction=by_instruction)
                code.builder.store(dot, variable)

    _each_step(code, codes, bits, halves, sums, add)
    return [[code.builder.load(variable) for variable in row] for row in sums]


def _sum_floats(code: Code, codes: Any, inputs: list[Any], bits: int, halves: range) -> _Vectors:
    """The same sums, bit for bit, from inputs that were widened before."""
    sums = code.variables(len(inputs), len(halves))

    def add(left: list[Any], place_in: Callable[[Any, int], Any]) -> None:
        for number, of in enumerate((code.first_of, code.second_of)):
            floats = [of(pairs) for pairs in left]
            for address, variables in zip(inputs, sums, strict=True):
                place = code.plus(place_in(address, 2 * STEP_BYTES), number, 4)
                right = code.repeated(code.load(place, FLOAT), FLOATS)
                for one, variable in zip(floats, variables, strict=True):
                    code.builder.store(code.add_product(one, right, code.builder.load(variable)), variable)

    _each_step(code, codes, bits, halves, sums, add)
    return [[code.builder.load(variable) for variable in row] for row in sums]


def _sum_apart(code: Code, codes: Any, inputs: list[Any], bits: int, halves: range) -> _Vectors:
    """The same sums, bit for bit, as matrix instructions compute them: a step's first and second inputs separately."""
    builder, sums = code.builder, code.variables(len(inputs), 2 * len(halves))

    def add(left: list[Any], place_in: Callable[[Any, int], Any]) -> None:
        for address, variables in zip(inputs, sums, strict=True):
            right = code.repeated(code.load(place_in(address, STEP_BYTES), INT32), INTS)
            for half, pairs in enumerate(left):
                for part, of in enumerate((code.first_of, code.second_of)):
                    variable = variables[2 * half + part]
                    builder.store(code.add_product(of(pairs), of(right), builder.load(variable)), variable)

    _each_step(code, codes, bits, halves, sums, add)
    values = [[builder.load(variable) for variable in row] for row in sums]
    return [[builder.fadd(*row[2 * half : 2 * half + 2]) for half in range(len(halves))] for row in values]


def _each_step(code: Code, codes: Any, bits: int, halves: range, sums: _Vectors, add: _Add) -> None:
    """Starting from zero, call `add(pairs of codes by half, place_in)` for each step of a block.

    `place_in(address, size)` is the address of the step's inputs in a row that takes `size` bytes per step.
    """
    builder, in_lane = code.builder, 16 // bits
    for variables in sums:
        for variable in variables:
            builder.store(ir.Constant(FLOATS, None), variable)
    with cgutils.for_range(builder, ir.Constant(INT64, BLOCK // 2 // in_lane)) as groups:
        group = code.plus(codes, groups.index, NUM_HALVES * VECTOR_BYTES)
        vectors = [code.load(code.plus(group, half, VECTOR_BYTES), INTS) for half in halves]
        for number, left in enumerate(zip(*(as_pairs(code, vector, bits) for vector in vectors), strict=True)):

            def place_in(address: Any, size: int, number: int = number) -> Any:
                return code.plus(code.plus(address, groups.index, in_lane * size), number, size)

            add(list(left), place_in)


_tile_4, _tile_8 = tile_of(4, has_amx=HAS_AMX), tile_of(8, has_amx=HAS_AMX)


@inlined
def code_rows_at_once() -> int:
    """The most rows that `sums_codes` accepts."""
    return amx_codes.ROWS if HAS_AMX else BLOCKING.rows


def sums_codes(x_RI: Array, x_sums_RB: Array, bits: int, weights: int, out_RW: Array) -> None:
    """The product of up to `code_rows_at_once` rows with the tile at an address, in float32."""
    raise NotImplementedError("compiled only")  # the overload below takes its place


@overload(sums_codes)
def _sums_codes(x_RI, x_sums_RB, bits, weights, out_RW):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202 - see `bits`
    if isinstance(x_RI.dtype, types.Float):  # never called: inputs of quantised products are bfloat16
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


@compiled
def block_sums(x_RI: Array) -> Array:
    """Every row's sum of inputs over each block, `[R, B]`; computed by halves."""
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
