"""The product of a tile with a few rows, by vector instructions; its weights are read once, in order.

The layout is that of `tiling.py`. A row's result does not depend on the other rows: each is summed separately, always
in the same order.

Shapes: R rows, I inputs, W = 32.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from osd.kernels.cpu.bits import Array, inlined
from osd.kernels.cpu.products import amx
from osd.kernels.cpu.products.amx import HAS_AMX
from osd.kernels.cpu.products.blocking import BLOCK_STEPS, BLOCKING, Blocking
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

_HALVES = WIDTH * STEP_BYTES // VECTOR_BYTES


def tile_of(*, is_float32: bool, has_amx: bool, blocking: Blocking = BLOCKING) -> Any:
    """The intrinsic that multiplies a tile with rows of one dtype, by one kind of instructions."""

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
        """Takes addresses, and strides in bytes; `out` receives `[num_rows, WIDTH]` float32."""

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            if has_amx:
                amx.write_tile(builder, args[:-1])
                return context.get_dummy_value()
            biases, steps, x, x_stride, out, out_stride, num_steps, num_rows, ahead = args
            one = _Tile(is_float32, blocking, biases, steps, x, x_stride, out, out_stride, num_steps, ahead)
            for_each_number_of_rows(builder, num_rows, one.write, blocking.rows)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 9), generate

    return tile


class _Tile(NamedTuple):
    """Generates a tile's product by vector instructions; addresses and strides as in `tile_of`."""

    is_float32: bool
    blocking: Blocking
    biases: Any
    steps: Any
    x: Any
    x_stride: Any
    out: Any
    out_stride: Any
    num_steps: Any
    ahead: Any

    def write(self, code: Code, rows: int) -> None:
        """Generate the sums for a number of rows known at compile time."""
        sums, begin = code.variables(rows, _HALVES), ir.Constant(INT64, 0)
        start_from_biases(code, sums, self.biases)
        if rows > self.blocking.whole_rows:
            store_sums(code, sums, self.out, self.out_stride)
            begin = self._add_blocks(code, rows)
            sums = code.loaded(places_of(code, self.out, self.out_stride, rows))
        self._add_steps(code, sums, begin)
        store_sums(code, sums, self.out, self.out_stride)

    def _add_steps(self, code: Code, sums: list[list[Any]], begin: Any) -> None:
        """Add all steps from `begin` on, each for all outputs."""
        builder, rows = code.builder, len(sums)
        with cgutils.for_range_slice(builder, begin, self.num_steps, ir.Constant(INT64, 1)) as (index, _):
            step = code.plus(self.steps, index, _HALVES * VECTOR_BYTES)
            if rows == self.blocking.rows and not self.blocking.ahead_bytes:
                code.prefetch(code.plus(self.ahead, index, VECTOR_BYTES), VECTOR_BYTES)
            self._bring_near(code, step, rows, range(_HALVES))
            left = [code.load(code.plus(step, half, VECTOR_BYTES), INTS) for half in range(_HALVES)]
            for row, halves in enumerate(sums):
                place = code.plus(code.plus(self.x, self.x_stride, row), index, STEP_BYTES)
                right = code.repeated(code.load(place, INT32), INTS)
                for half, variable in enumerate(halves):
                    builder.store(self._dot(code, left[half], right, builder.load(variable)), variable)

    def _dot(self, code: Code, left: Any, right: Any, sums: Any) -> Any:
        if self.is_float32:
            return code.dot_floats(left, right, sums)
        return code.dot_pairs(left, right, sums, by_instruction=self.blocking.dots_pairs)

    def _add_blocks(self, code: Code, rows: int) -> Any:
        """Add all whole blocks of steps to the sums in `out`, each for one half of the outputs and then for the other.

        Returns:
            The number of steps added.
        """
        builder, size = code.builder, ir.Constant(INT64, BLOCK_STEPS)
        places = places_of(code, self.out, self.out_stride, rows)
        num_blocks = builder.udiv(self.num_steps, size)
        with cgutils.for_range(builder, num_blocks) as loop:
            inputs = [
                code.plus(code.plus(self.x, self.x_stride, row), loop.index, BLOCK_STEPS * STEP_BYTES)
                for row in range(rows)
            ]
            if not self.is_float32:
                inputs = [code.widened(address) for address in inputs]
            block = code.plus(self.steps, loop.index, BLOCK_STEPS * _HALVES * VECTOR_BYTES)
            for half in range(_HALVES):
                of_half = [[row_places[half]] for row_places in places]
                sums = code.loaded(of_half)
                self._add_block(code, sums, block, inputs, half)
                code.stored(sums, of_half)
        return builder.mul(num_blocks, size)

    def _add_block(self, code: Code, sums: list[list[Any]], block: Any, inputs: list[Any], half: int) -> None:
        """Add one block's steps for one half of the outputs; inputs are float32."""
        builder = code.builder
        of_step = (code.as_floats,) if self.is_float32 else (code.first_of, code.second_of)
        with cgutils.for_range(builder, ir.Constant(INT64, BLOCK_STEPS)) as loop:
            step = code.plus(block, loop.index, _HALVES * VECTOR_BYTES)
            self._bring_near(code, step, len(sums), range(half, half + 1))
            weights = code.load(code.plus(step, half, VECTOR_BYTES), INTS)
            for number, of in enumerate(of_step):
                left = of(weights)
                for address, [variable] in zip(inputs, sums, strict=True):
                    place = code.plus(code.plus(address, loop.index, len(of_step) * 4), number, 4)
                    right = code.repeated(code.load(place, FLOAT), FLOATS)
                    builder.store(code.add_product(left, right, builder.load(variable)), variable)

    def _bring_near(self, code: Code, step: Any, rows: int, halves: range) -> None:
        """Prefetch weights, where a step takes longer to compute than to read."""
        if rows > 1 and self.blocking.ahead_bytes:
            for half in halves:
                code.prefetch(code.plus(step, self.blocking.ahead_bytes + half * VECTOR_BYTES), VECTOR_BYTES)


def start_from_biases(code: Code, sums: list[list[Any]], biases: Any) -> None:
    """Initialise every row's sums with the tile's biases at that address."""
    for halves in sums:
        for half, variable in enumerate(halves):
            code.builder.store(code.load(code.plus(biases, half, VECTOR_BYTES), FLOATS), variable)


def places_of(code: Code, out: Any, out_stride: Any, rows: int) -> list[list[Any]]:
    """The addresses of every row's halves; rows are `out_stride` bytes apart."""
    starts = [code.plus(out, out_stride, row) for row in range(rows)]
    return [[code.plus(start, half, VECTOR_BYTES) for half in range(_HALVES)] for start in starts]


def store_sums(code: Code, sums: list[list[Any]], out: Any, out_stride: Any) -> None:
    """Store sums; rows are `out_stride` bytes apart."""
    code.stored(sums, places_of(code, out, out_stride, len(sums)))


_intrinsic: Any = intrinsic  # numba passes the first argument of a decorated function itself


@_intrinsic  # type: ignore[untyped-decorator]  # numba is untyped
def _make_ready(typing: Any, num_rows: Any, num_steps: Any) -> Any:
    """Configure AMX registers; see `osd.kernels.cpu.products.amx`."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        amx.make_ready(builder, *args)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp), generate


@_intrinsic  # type: ignore[untyped-decorator]  # numba is untyped
def _release_registers(typing: Any) -> Any:
    """Release AMX registers; see `osd.kernels.cpu.products.amx`."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        amx.release_registers(builder)
        return context.get_dummy_value()

    return types.void(), generate


@inlined
def rows_at_once(x_RI: Array) -> int:
    """The most rows that `sums` accepts."""
    if not (HAS_AMX and x_RI.itemsize == 2):
        return BLOCKING.rows
    is_whole = x_RI.shape[1] * x_RI.itemsize % (amx.STEPS * STEP_BYTES) == 0
    return amx.ROWS if is_whole else amx.REGISTER_ROWS


@inlined
def ready(x_RI: Array, num_ready: int) -> int:
    """Prepare for `sums` of these rows. Returns the number of rows prepared for, to pass to the next call.

    Args:
        x_RI: the rows of the next `sums`.
        num_ready: what the previous call returned; 0 at first.
    """
    if HAS_AMX and x_RI.itemsize == 2 and len(x_RI) != num_ready:
        _make_ready(len(x_RI), x_RI.shape[1] * x_RI.itemsize // STEP_BYTES)
    return len(x_RI)


@inlined
def release_registers(x_RI: Array) -> None:
    """Call this after the last `sums` of such rows; it releases AMX registers."""
    if HAS_AMX and x_RI.itemsize == 2:
        _release_registers()


_tile_float32 = tile_of(is_float32=True, has_amx=False)
_tile_bfloat16 = tile_of(is_float32=False, has_amx=HAS_AMX)


def sums(x_RI: Array, biases: int, steps: int, out_RW: Array, ahead: int) -> None:
    """The product of up to `rows_at_once` rows with the tile whose biases and steps are at these addresses, in float32.

    With AVX-512, a block of `BLOCKING.rows` rows takes longer to compute than its weights take to read; meanwhile it
    prefetches from address `ahead` half as many bytes as the steps have. `ahead == steps` prefetches nothing.
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
