"""Numbers in another order, by vector instructions: element by element it takes several times as long.

Shapes: W or L rows, S steps: columns, or pairs of rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from osd.models.compiled.bits import Array, inner
from osd.models.compiled.vectors import FLOATS, INT32, INT64, INTS, SHORTS, VECTOR_BYTES, Code

_intrinsic: Any = intrinsic  # which is called without the first argument of what it decorates
_SIDE = 16


@inner
def transpose(rows_WS: Array, columns_SW: Array) -> None:
    """Of numbers of four bytes. Sixteen columns are written at once: what rows that are not there get means nothing."""
    num_rows, num_steps = rows_WS.shape
    whole = num_steps // _SIDE * _SIDE
    for row in range(0, num_rows, _SIDE):
        source, target = rows_WS[row:], columns_SW[:, row:]
        for step in range(0, whole, _SIDE):
            _transpose_square(
                source[:, step:].ctypes.data,
                source.strides[0],
                len(source),
                target[step:].ctypes.data,
                target.strides[0],
            )
    for step in range(whole, num_steps):
        for row in range(num_rows):
            columns_SW[step, row] = rows_WS[row, step]


@_intrinsic  # type: ignore[untyped-decorator]  # numba is untyped
def _transpose_square(typing: Any, rows: Any, row_stride: Any, num_rows: Any, columns: Any, column_stride: Any) -> Any:
    """Sixteen rows of sixteen numbers; addresses, and strides in bytes. Where rows are fewer, the last is repeated."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        rows, row_stride, num_rows, columns, column_stride = args
        code = Code(builder)
        last = builder.sub(num_rows, ir.Constant(INT64, 1))
        vectors = []
        for row in range(_SIDE):
            number = ir.Constant(INT64, row)
            number = builder.select(builder.icmp_signed("<", number, last), number, last)
            vectors.append(code.load(builder.add(rows, builder.mul(number, row_stride)), FLOATS))
        for distance in (1, 2, 4, 8):
            vectors = _exchanged(builder, vectors, distance)
        for column, vector in enumerate(vectors):
            code.store(vector, code.plus(columns, column_stride, column))
        return context.get_dummy_value()

    return types.void(*[types.intp] * 5), generate


def _exchanged(builder: Any, vectors: list[Any], distance: int) -> list[Any]:
    """Of every square of twice that side, the two quarters off the diagonal."""
    places = range(_SIDE)
    upper = [place if not place & distance else place - distance + _SIDE for place in places]
    lower = [place + distance if not place & distance else place + _SIDE for place in places]
    exchanged = list(vectors)
    for row in places:
        if not row & distance:
            pair = vectors[row], vectors[row + distance]
            exchanged[row] = builder.shuffle_vector(*pair, ir.Constant(INTS, upper))
            exchanged[row + distance] = builder.shuffle_vector(*pair, ir.Constant(INTS, lower))
    return exchanged


@inner
def interleave(rows_LW: Array, pairs_SW: Array) -> None:
    """Of every two rows of up to thirty-two numbers of two bytes, pairs; a last one without another is left out."""
    num_steps, width = len(rows_LW) // 2, rows_LW.shape[1]
    if width == 2 * _SIDE:
        rows, row_bytes, pairs = rows_LW.ctypes.data, rows_LW.strides[0], pairs_SW.ctypes.data
        for step in range(num_steps):
            _interleave_two(rows + 2 * step * row_bytes, rows + (2 * step + 1) * row_bytes, pairs)
            pairs += pairs_SW.strides[0]
    else:
        for step in range(num_steps):
            for w in range(width):
                first, second = rows_LW[2 * step, w], rows_LW[2 * step + 1, w]
                pairs_SW[step, w] = np.uint32(first) | np.uint32(np.uint32(second) << np.uint32(16))


@_intrinsic  # type: ignore[untyped-decorator]  # numba is untyped
def _interleave_two(typing: Any, first: Any, second: Any, pairs: Any) -> Any:
    """Addresses."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        code = Code(builder)
        left, right = (code.load(address, SHORTS) for address in args[:2])
        for half in range(2):
            places = [place // 2 + 16 * half + place % 2 * 32 for place in range(32)]
            pairs = builder.shuffle_vector(left, right, ir.Constant(ir.VectorType(INT32, 32), places))
            code.store(builder.bitcast(pairs, FLOATS), code.plus(args[2], half, VECTOR_BYTES))
        return context.get_dummy_value()

    return types.void(*[types.intp] * 3), generate
