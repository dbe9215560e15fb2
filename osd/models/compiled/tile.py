"""Matrix products at a few rows: weights in tiles of 32 outputs that are read once, in order, at the memory's speed.

The layout is that of `osd.models.compiled.tiling`. A row's result does not depend on the rows beside it: each is summed
alone, in one order.

Shapes: R rows, O outputs, I inputs, W = 32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from osd.models.compiled.bits import Array, exp, inner, narrow, widen
from osd.models.compiled.tiling import STEP_BYTES, WIDTH

_FEATURES = binding.get_host_cpu_features()
ROWS = 8 if _FEATURES.get("avx512f") else 3
"""Rows summed at once: as many as there are registers for."""

_INT32, _FLOAT = ir.IntType(32), ir.FloatType()
_INTS, _FLOATS = ir.VectorType(_INT32, 16), ir.VectorType(_FLOAT, 16)


class _BFloat(ir.Type):  # type: ignore[misc]  # llvmlite is untyped, and does not know this type
    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


_Dot = Callable[[Any, Any, Any, Any], Any]
"""(builder, sums, steps of sixteen outputs, the row's step sixteen times) to new sums."""


def _multiply_add(builder: Any, sums: Any, left: Any, right: Any) -> Any:
    left, right = builder.bitcast(left, _FLOATS), builder.bitcast(right, _FLOATS)
    name, kind = "llvm.fma.v16f32", ir.FunctionType(_FLOATS, [_FLOATS] * 3)
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [left, right, sums])


def _dot_pairs(builder: Any, sums: Any, left: Any, right: Any) -> Any:
    """bfloat16 without an instruction for it."""
    high, shift = ir.Constant(_INTS, [-65536] * 16), ir.Constant(_INTS, [16] * 16)
    sums = _multiply_add(builder, sums, builder.shl(left, shift), builder.shl(right, shift))
    return _multiply_add(builder, sums, builder.and_(left, high), builder.and_(right, high))


def _dot_pairs_at_once(builder: Any, sums: Any, left: Any, right: Any) -> Any:
    pairs = ir.VectorType(_BFloat(), 32)
    name, kind = "llvm.x86.avx512bf16.dpbf16ps.512", ir.FunctionType(_FLOATS, [_FLOATS, pairs, pairs])
    function = cgutils.get_or_insert_function(builder.module, kind, name)
    return builder.call(function, [sums, builder.bitcast(left, pairs), builder.bitcast(right, pairs)])


def _tile(dot: _Dot) -> Any:
    @intrinsic
    def tile(
        typing: Any, weights: Any, x: Any, x_stride: Any, out: Any, out_stride: Any, num_steps: Any, num_rows: Any
    ) -> Any:
        """Addresses and strides in bytes; `out` takes `[num_rows, WIDTH]` float32."""

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            for rows in range(1, ROWS + 1):
                with builder.if_then(builder.icmp_signed("==", args[-1], ir.Constant(args[-1].type, rows))):
                    _rows(builder, dot, rows, *args[:-1])
            return context.get_dummy_value()

        return types.void(*[types.intp] * 7), generate

    return tile


def _rows(
    builder: Any, dot: _Dot, rows: int, weights: Any, x: Any, x_stride: Any, out: Any, out_stride: Any, num_steps: Any
) -> None:
    """The loop over the steps, with every row's sums in registers."""
    int64 = weights.type
    halves = WIDTH // 16

    def at(address: Any, offset: Any, kind: Any) -> Any:
        return builder.inttoptr(builder.add(address, offset), kind.as_pointer())

    def load(address: Any, offset: Any, kind: Any) -> Any:
        loaded = builder.load(at(address, offset, kind))
        loaded.align = STEP_BYTES
        return loaded

    def vector_bytes(number: int) -> Any:
        return ir.Constant(int64, number * 16 * STEP_BYTES)

    sums = [[cgutils.alloca_once(builder, _FLOATS) for _ in range(halves)] for _ in range(rows)]
    for row in sums:
        for half, place in enumerate(row):
            builder.store(load(weights, vector_bytes(half), _FLOATS), place)
    with cgutils.for_range(builder, num_steps) as loop:
        step = builder.add(weights, builder.mul(builder.add(loop.index, ir.Constant(int64, 1)), vector_bytes(halves)))
        left = [load(step, vector_bytes(half), _INTS) for half in range(halves)]
        for number, row in enumerate(sums):
            start = builder.add(x, builder.mul(x_stride, ir.Constant(int64, number)))
            one = load(start, builder.mul(loop.index, ir.Constant(int64, STEP_BYTES)), _INT32)
            nothing = ir.Constant(_INTS, ir.Undefined)
            first = builder.insert_element(nothing, one, ir.Constant(_INT32, 0))
            right = builder.shuffle_vector(first, nothing, ir.Constant(_INTS, [0] * 16))
            for place, of_half in zip(row, left, strict=True):
                builder.store(dot(builder, builder.load(place), of_half, right), place)
    for number, row in enumerate(sums):
        start = builder.add(out, builder.mul(out_stride, ir.Constant(int64, number)))
        for half, place in enumerate(row):
            stored = builder.store(builder.load(place), at(start, vector_bytes(half), _FLOATS))
            stored.align = STEP_BYTES


_tile_float32 = _tile(_multiply_add)
_tile_bfloat16 = _tile(_dot_pairs_at_once if _FEATURES.get("avx512bf16") else _dot_pairs)


def sums(x_RI: Array, weights: int, out_RW: Array) -> None:
    """Of up to `ROWS` rows and the tile at an address, in float32."""
    raise NotImplementedError("compiled only")


@overload(sums)
def _sums(x_RI, weights, out_RW):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202 - lambdas have no types
    tile = _tile_float32 if isinstance(x_RI.dtype, types.Float) else _tile_bfloat16
    return lambda x_RI, weights, out_RW: tile(
        weights,
        x_RI.ctypes.data,
        x_RI.strides[0],
        out_RW.ctypes.data,
        out_RW.strides[0],
        x_RI.shape[1] * x_RI.itemsize // STEP_BYTES,
        len(x_RI),
    )


@inner
def project(tile: int, weights: int, x_RI: Array, out_RO: Array, is_added: bool) -> None:
    """One tile's outputs for all rows, written or added."""
    first = tile * WIDTH
    address = weights + tile * _num_bytes(x_RI)
    sums_RW = np.empty((ROWS, WIDTH), np.float32)
    for start in range(0, len(x_RI), ROWS):
        chunk_RI = x_RI[start : start + ROWS]
        sums(chunk_RI, address, sums_RW)
        for row in range(len(chunk_RI)):
            out_O = out_RO[start + row, first : first + WIDTH]
            if is_added:
                for i in range(len(out_O)):
                    out_O[i] = narrow(sums_RW[row, i] + widen(out_O[i]), out_O)
            else:
                for i in range(len(out_O)):
                    out_O[i] = narrow(sums_RW[row, i], out_O)


@inner
def project_gated(tile: int, weights: int, x_RI: Array, out_RO: Array) -> None:
    """`silu(gate) * up` of one tile's outputs (Shazeer 2020, arXiv 2002.05202); the ups' tiles follow the gates'."""
    first = tile * WIDTH
    gates_RW, ups_RW = np.empty((ROWS, WIDTH), np.float32), np.empty((ROWS, WIDTH), np.float32)
    gate = weights + tile * _num_bytes(x_RI)
    up = gate + (out_RO.shape[1] + WIDTH - 1) // WIDTH * _num_bytes(x_RI)
    for start in range(0, len(x_RI), ROWS):
        chunk_RI = x_RI[start : start + ROWS]
        sums(chunk_RI, gate, gates_RW)
        sums(chunk_RI, up, ups_RW)
        for row in range(len(chunk_RI)):
            out_O = out_RO[start + row, first : first + WIDTH]
            for i in range(len(out_O)):
                gate_value = gates_RW[row, i]
                out_O[i] = narrow(gate_value / (np.float32(1) + exp(-gate_value)) * ups_RW[row, i], out_O)


@inner
def _num_bytes(x_RI: Array) -> int:
    """Of a tile for such inputs."""
    num_steps: int = x_RI.shape[1] * x_RI.itemsize // STEP_BYTES
    return (1 + num_steps) * WIDTH * STEP_BYTES
