"""A tile's sums for a few rows: its weights are read once, in order, at the memory's speed.

The layout is that of `osd.models.compiled.tiling`. A row's result does not depend on the rows beside it: each is summed
alone, in one order.

Shapes: R rows, I inputs, W = 32.
"""

from __future__ import annotations

from typing import Any

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from osd.models.compiled import amx
from osd.models.compiled.amx import HAS_AMX
from osd.models.compiled.bits import Array, inner
from osd.models.compiled.tiling import STEP_BYTES, WIDTH
from osd.models.compiled.vectors import FLOATS, INT32, INTS, ROWS, VECTOR_BYTES, Code, for_each_number_of_rows

_HALVES = WIDTH * STEP_BYTES // VECTOR_BYTES


def tile_of(*, is_float32: bool, has_amx: bool) -> Any:
    """What sums a tile's products with one kind of numbers, by one kind of instructions."""

    @intrinsic
    def tile(
        typing: Any,
        biases: Any,
        steps: Any,
        x: Any,
        x_stride: Any,
        out: Any,
        out_stride: Any,
        num_steps: Any,
        num_rows: Any,
        ahead: Any,
    ) -> Any:
        """Addresses and strides in bytes; `out` takes `[num_rows, WIDTH]` float32."""

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            if has_amx:
                amx.write_tile(builder, args[:-1])
                return context.get_dummy_value()
            biases, steps, x, x_stride, out, out_stride, num_steps, num_rows, ahead = args

            def write(code: Code, rows: int) -> None:
                dot = code.dot_floats if is_float32 else code.dot_pairs
                sums = code.variables(rows, _HALVES)
                start_from_biases(code, sums, biases)
                with cgutils.for_range(builder, num_steps) as loop:
                    step = code.plus(steps, loop.index, _HALVES * VECTOR_BYTES)
                    if rows == ROWS:
                        code.prefetch(code.plus(ahead, loop.index, VECTOR_BYTES), VECTOR_BYTES)
                    left = [code.load(code.plus(step, half, VECTOR_BYTES), INTS) for half in range(_HALVES)]
                    for row, halves in enumerate(sums):
                        place = code.plus(code.plus(x, x_stride, row), loop.index, STEP_BYTES)
                        right = code.repeated(code.load(place, INT32), INTS)
                        for half, variable in enumerate(halves):
                            builder.store(dot(left[half], right, builder.load(variable)), variable)
                store_sums(code, sums, out, out_stride)

            for_each_number_of_rows(builder, num_rows, write)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 9), generate

    return tile


def start_from_biases(code: Code, sums: list[list[Any]], biases: Any) -> None:
    """Every row's sums begin with the tile's biases, at that address."""
    for halves in sums:
        for half, variable in enumerate(halves):
            code.builder.store(code.load(code.plus(biases, half, VECTOR_BYTES), FLOATS), variable)


def store_sums(code: Code, sums: list[list[Any]], out: Any, out_stride: Any) -> None:
    """Rows `out_stride` bytes apart."""
    for row, halves in enumerate(sums):
        for half, variable in enumerate(halves):
            place = code.plus(code.plus(out, out_stride, row), half, VECTOR_BYTES)
            code.store(code.builder.load(variable), place)


_intrinsic: Any = intrinsic  # which is called without the first argument of what it decorates


@_intrinsic  # type: ignore[untyped-decorator]  # numba is untyped
def _make_ready(typing: Any, num_rows: Any, num_steps: Any) -> Any:
    """See `osd.models.compiled.amx`."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        amx.make_ready(builder, *args)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp), generate


@_intrinsic  # type: ignore[untyped-decorator]  # as above
def _leave(typing: Any) -> Any:
    """Likewise."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        amx.leave(builder)
        return context.get_dummy_value()

    return types.void(), generate


@inner
def rows_at_once(x_RI: Array) -> int:
    """How many rows `sums` takes."""
    if not (HAS_AMX and x_RI.itemsize == 2):
        return ROWS
    is_whole = x_RI.shape[1] * x_RI.itemsize % (amx.STEPS * STEP_BYTES) == 0
    return amx.ROWS if is_whole else amx.REGISTER_ROWS


@inner
def ready(x_RI: Array, num_ready: int) -> int:
    """To be called before `sums` of these rows: how many it is ready for then, to be handed on to the next call.

    Args:
        x_RI: as many as are summed at once.
        num_ready: of the same kind, what the last call returned; 0 at first.
    """
    if HAS_AMX and x_RI.itemsize == 2 and len(x_RI) != num_ready:
        _make_ready(len(x_RI), x_RI.shape[1] * x_RI.itemsize // STEP_BYTES)
    return len(x_RI)


@inner
def leave(x_RI: Array) -> None:
    """To be called after the last `sums` of such rows."""
    if HAS_AMX and x_RI.itemsize == 2:
        _leave()


_tile_float32 = tile_of(is_float32=True, has_amx=False)
_tile_bfloat16 = tile_of(is_float32=False, has_amx=HAS_AMX)


def sums(x_RI: Array, biases: int, steps: int, out_RW: Array, ahead: int) -> None:
    """Of up to `rows_at_once` rows and the tile whose biases and steps are at these addresses, in float32.

    `ROWS` rows that vectors sum take longer than their weights: what is at `ahead` is brought near meanwhile, half as
    many bytes as the steps are. At `steps` themselves there is nothing to bring.
    """
    raise NotImplementedError("compiled only")  # the overload below takes its place


@overload(sums)
def _sums(x_RI, biases, steps, out_RW, ahead):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202 - lambdas have no types
    tile = _tile_float32 if isinstance(x_RI.dtype, types.Float) else _tile_bfloat16
    return lambda x_RI, biases, steps, out_RW, ahead: tile(
        biases,
        steps,
        x_RI.ctypes.data,
        x_RI.strides[0],
        out_RW.ctypes.data,
        out_RW.strides[0],
        x_RI.shape[1] * x_RI.itemsize // STEP_BYTES,
        len(x_RI),
        ahead,
    )
