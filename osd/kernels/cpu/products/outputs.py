"""Writes a tile's sums to the output by vector instructions: stored, added, or gated.

Shapes: R rows, W = 32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from osd.kernels.cpu.bits import LOG2_E, Array, compiled, empty_rows, inlined
from osd.kernels.cpu.products.tiling import WIDTH
from osd.kernels.cpu.products.vectors import FLOAT, FLOATS, INTS, VECTOR_BYTES, Code

_NUM_HALVES = WIDTH * 4 // VECTOR_BYTES
_EXP2 = (1.3333558e-3, 9.6181291e-3, 5.5504109e-2, 2.4022651e-1, 6.9314718e-1, 1.0)
"""Coefficients, highest power first, of a polynomial for 2 ** x with x in -0.5 .. 0.5."""

_Half = Callable[[Code, Any, Any, int], Any]
"""From (code, address of half a row's sums, address of its outputs, bits of an output) to the vector to store."""


def write(sums_RW: Array, out_RW: Array) -> None:
    """Store the sums of as many rows as `out_RW` has."""
    raise NotImplementedError("compiled only")  # the overload below takes its place


def add(sums_RW: Array, out_RW: Array) -> None:
    """Add the sums to `out_RW`."""
    raise NotImplementedError("compiled only")  # the overload below takes its place


def gate(gates_RW: Array, ups_RW: Array, out_RW: Array) -> None:
    """Store `silu(gate) * up` (Shazeer 2020, arXiv 2002.05202)."""
    raise NotImplementedError("compiled only")  # the overload below takes its place


def _stored(bits: int, half_of: _Half) -> Any:
    @intrinsic
    def stored(typing: Any, sums: Any, out: Any, out_stride: Any, num_rows: Any) -> Any:
        """Takes addresses, and a stride in bytes."""

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            _for_each_half(builder, args, bits, half_of)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 4), generate

    return stored


def _written(code: Code, source: Any, place: Any, bits: int) -> Any:
    return code.load(source, FLOATS)


def _added(code: Code, source: Any, place: Any, bits: int) -> Any:
    return code.builder.fadd(code.load(source, FLOATS), code.load_numbers(place, bits))


def _gated(bits: int) -> Any:
    @intrinsic
    def gated(typing: Any, gates: Any, ups: Any, out: Any, out_stride: Any, num_rows: Any) -> Any:
        """Takes addresses, and a stride in bytes; gates and ups have the same layout."""

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            gates, ups, *places = args
            to_ups = builder.sub(ups, gates)

            def half(code: Code, source: Any, place: Any, bits: int) -> Any:
                gate = code.load(source, FLOATS)
                total = builder.fadd(_constant(1.0), _exp(code, builder.fneg(gate)))
                return builder.fmul(builder.fdiv(gate, total), code.load(builder.add(source, to_ups), FLOATS))

            _for_each_half(builder, [gates, *places], bits, half)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 5), generate

    return gated


def _for_each_half(builder: Any, args: Sequence[Any], bits: int, half_of: _Half) -> None:
    """Store the result of `half_of` for each half of each row, in elements of `bits` bits."""
    sums, out, out_stride, num_rows = args
    code = Code(builder)
    with cgutils.for_range(builder, num_rows) as rows:
        source_row = code.plus(sums, rows.index, _NUM_HALVES * VECTOR_BYTES)
        row = builder.add(out, builder.mul(out_stride, rows.index))
        for half in range(_NUM_HALVES):
            place = code.plus(row, half, VECTOR_BYTES * bits // 32)
            code.store_numbers(half_of(code, code.plus(source_row, half, VECTOR_BYTES), place, bits), place, bits)


def _exp(code: Code, x: Any) -> Any:
    """exp(x) to float32 accuracy, as `osd.kernels.cpu.bits.exp`."""
    builder = code.builder
    y = builder.fmul(code.at_most(code.at_least(x, _constant(-87.0)), _constant(88.0)), _constant(float(LOG2_E)))
    whole = code.floor(builder.fadd(y, _constant(0.5)))
    rest, power = builder.fsub(y, whole), _constant(_EXP2[0])
    for coefficient in _EXP2[1:]:
        power = code.add_product(power, rest, _constant(coefficient))
    exponent = builder.add(builder.fptosi(whole, INTS), ir.Constant(INTS, [127] * 16))
    scale = builder.bitcast(builder.shl(exponent, ir.Constant(INTS, [23] * 16)), FLOATS)
    return builder.fmul(scale, power)


def _constant(value: float) -> Any:
    return ir.Constant(FLOATS, [ir.Constant(FLOAT, value)] * 16)


_write = {bits: _stored(bits, _written) for bits in (16, 32)}
_add = {bits: _stored(bits, _added) for bits in (16, 32)}
_gate = {bits: _gated(bits) for bits in (16, 32)}


def _bits(array: Any) -> int:
    return 32 if isinstance(array.dtype, types.Float) else 16


def _compiled(stores: dict[int, Any]) -> Any:
    """The implementation that numba uses in place of a function."""

    def typed(sums_RW, out_RW):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202 - see `bits`
        store = stores[_bits(out_RW)]

        def compiled(sums_RW, out_RW):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202 - as above
            whole = _whole(out_RW)
            store(sums_RW.ctypes.data, whole.ctypes.data, whole.strides[0], len(whole))
            _cut(whole, out_RW)

        return compiled

    return typed


overload(write)(_compiled(_write))
overload(add)(_compiled(_add))


@overload(gate)
def _gate_compiled(gates_RW, ups_RW, out_RW):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202 - as above
    store = _gate[_bits(out_RW)]

    def compiled(gates_RW, ups_RW, out_RW):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202 - as above
        whole = _whole(out_RW)
        store(gates_RW.ctypes.data, ups_RW.ctypes.data, whole.ctypes.data, whole.strides[0], len(whole))
        _cut(whole, out_RW)

    return compiled


@inlined
def _whole(out_RW: Array) -> Array:
    """The outputs as rows of whole tiles: a temporary copy if there are fewer outputs."""
    if out_RW.shape[1] == WIDTH:
        return out_RW
    whole_RW = empty_rows(len(out_RW), WIDTH, out_RW)
    _copy(out_RW, whole_RW, out_RW.shape[1])
    return whole_RW


@inlined
def _cut(whole_RW: Array, out_RW: Array) -> None:
    """Copy the existing outputs back from the temporary."""
    if out_RW.shape[1] < WIDTH:
        _copy(whole_RW, out_RW, out_RW.shape[1])


@compiled
def _copy(source_RW: Array, out_RW: Array, num_columns: int) -> None:
    """Copy element by element; numba would take many seconds to compile a slice assignment."""
    for row in range(len(out_RW)):
        for column in range(num_columns):
            out_RW[row, column] = source_RW[row, column]
