"""Tile products by Intel's matrix instructions (AMX), for up to 32 rows at once.

An AMX register holds sixteen rows of 64 bytes. The tile layout of `osd.kernels.cpu.products.tiling` suits it directly:
sixteen steps of sixteen outputs, 128 bytes apart. A row's result does not depend on the other rows.

Registers must be configured before use, which takes longer than a short product, so one configuration serves many
products. Rows aligned to cache lines are loaded in half of the time (`aligned` in `osd.machine.arrays`, `empty_rows` in
`bits`).
"""

from __future__ import annotations

import ctypes
import platform
from typing import Any

from llvmlite import ir
from numba.core import cgutils

from osd.kernels.cpu.products.tiling import STEP_BYTES, WIDTH
from osd.kernels.cpu.products.vectors import FEATURES, INT64, VECTOR_BYTES, Code

REGISTER_ROWS = 16
ROWS = 2 * REGISTER_ROWS
STEPS = 16
_INT8, _INT16 = ir.IntType(8), ir.IntType(16)
_CONFIG = ir.ArrayType(_INT8, 64)
_POINTER = _INT8.as_pointer()
_COLUMN_BYTES, _NUM_ROWS = 16, 48
"""Offsets in the configuration of each register's row length in bytes, and of its number of rows."""
_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18
_SUMS, _MORE_SUMS, _X, _MORE_X, _WEIGHTS = (0, 1), (2, 3), 4, 5, (6, 7)
"""Registers of sums and inputs for the first sixteen rows and the next, and of weights for the tile's two halves."""
_LAST_X, _LAST_WEIGHTS = 5, (2, 3)
"""Registers for a last group of fewer than sixteen steps. They leave no registers for more than sixteen rows."""


def _is_allowed() -> bool:
    """Whether Linux permits these registers to this process, which has to ask for them."""
    if not FEATURES.get("amx-bf16") or platform.system() != "Linux":
        return False
    return int(ctypes.CDLL(None).syscall(_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA)) == 0


HAS_AMX = _is_allowed()


def make_ready(builder: Any, num_rows: Any, num_steps: Any) -> None:
    """Configure the registers for `write_tile`: for up to `ROWS` rows, or up to `REGISTER_ROWS` if the number of steps
    is not a multiple of `STEPS`. Lasts until the next configuration or `release_registers`.
    """
    has_more = builder.icmp_signed(">", num_rows, int64(REGISTER_ROWS))
    first = builder.select(has_more, int64(REGISTER_ROWS), num_rows)
    more = builder.select(has_more, builder.sub(num_rows, first), first)
    last = builder.urem(num_steps, int64(STEPS))
    has_last = builder.icmp_unsigned("!=", last, int64(0))
    row_bytes, last_bytes = int64(VECTOR_BYTES), builder.mul(last, int64(STEP_BYTES))
    MatrixCode(builder).configure(
        {
            **dict.fromkeys((*_SUMS, _X), (first, row_bytes)),
            **dict.fromkeys(_WEIGHTS, (int64(STEPS), row_bytes)),
            _MORE_X: (more, builder.select(has_last, last_bytes, row_bytes)),
            **dict.fromkeys(_MORE_SUMS, (builder.select(has_last, last, more), row_bytes)),
        }
    )


def release_registers(builder: Any) -> None:
    """Release the registers; a thread that uses them takes longer to switch."""
    MatrixCode(builder).call("tilerelease")


def write_tile(builder: Any, args: Any) -> None:
    """Generate the body of `tile` in `osd.kernels.cpu.products.tile`, for as many bfloat16 rows as are configured."""
    has_more = builder.icmp_signed(">", args[-1], int64(REGISTER_ROWS))
    with builder.if_else(has_more) as (then, otherwise):
        with then:
            _write_all(builder, args)
        with otherwise:
            _write_first(builder, args)


def _write_first(builder: Any, args: Any) -> None:
    """For up to sixteen rows."""
    biases, steps, x, x_stride, out, out_stride, num_steps, _ = args
    code = MatrixCode(builder)
    whole, last = builder.udiv(num_steps, int64(STEPS)), builder.urem(num_steps, int64(STEPS))

    def add(index: Any, x_register: int, registers: tuple[int, int]) -> None:
        code.fill(x_register, code.plus(x, index, VECTOR_BYTES), x_stride)
        for half, register in enumerate(registers):
            code.fill_half(register, steps, index, half)
            code.call("tdpbf16ps", _SUMS[half], x_register, register)

    code.begin(_SUMS, biases)
    with cgutils.for_range(builder, whole) as loop:
        add(loop.index, _X, _WEIGHTS)
    with builder.if_then(builder.icmp_unsigned("!=", last, int64(0))):
        add(whole, _LAST_X, _LAST_WEIGHTS)
    code.end(_SUMS, out, out_stride)


def _write_all(builder: Any, args: Any) -> None:
    """For more rows: each loaded register of weights is multiplied twice."""
    biases, steps, x, x_stride, out, out_stride, num_steps, _ = args
    code = MatrixCode(builder)
    more_x, more_out = (code.plus(start, stride, REGISTER_ROWS) for start, stride in ((x, x_stride), (out, out_stride)))
    for sums in (_SUMS, _MORE_SUMS):
        code.begin(sums, biases)
    with cgutils.for_range(builder, builder.udiv(num_steps, int64(STEPS))) as loop:
        code.fill(_X, code.plus(x, loop.index, VECTOR_BYTES), x_stride)
        for half, register in enumerate(_WEIGHTS):
            code.fill_half(register, steps, loop.index, half)
            code.call("tdpbf16ps", _SUMS[half], _X, register)
        code.fill(_MORE_X, code.plus(more_x, loop.index, VECTOR_BYTES), x_stride)
        for half, register in enumerate(_WEIGHTS):
            code.call("tdpbf16ps", _MORE_SUMS[half], _MORE_X, register)
    code.end(_SUMS, out, out_stride)
    code.end(_MORE_SUMS, more_out, out_stride)


def int64(number: int) -> Any:
    """An int64 constant."""
    return ir.Constant(INT64, number)


class MatrixCode(Code):
    """Code with matrix instructions."""

    def pointer(self, address: Any) -> Any:
        """An address as a pointer for instructions."""
        return self.builder.inttoptr(address, _POINTER)

    def configure(self, shapes: dict[int, tuple[Any, Any]]) -> None:
        """Configure registers: for each its number of rows and the bytes of a row."""
        config = cgutils.alloca_once(self.builder, _CONFIG)
        self.builder.store(ir.Constant(_CONFIG, [1] + [0] * 63), config)  # the first byte is the palette
        base = self.builder.ptrtoint(config, INT64)
        for register, (num_rows, column_bytes) in shapes.items():
            self._put(self.plus(base, _NUM_ROWS + register), num_rows, _INT8)
            self._put(self.plus(base, _COLUMN_BYTES + 2 * register), column_bytes, _INT16)
        self.call("ldtilecfg", self.pointer(base))

    def fill(self, register: int, address: Any, stride: Any) -> None:
        """Load a register's rows, which are `stride` bytes apart."""
        self.call("tileloadd64", register, self.pointer(address), stride)

    def fill_half(self, register: int, steps: Any, index: Any, half: int) -> None:
        """Load one half of sixteen steps of a tile."""
        block = self.plus(steps, index, STEPS * WIDTH * STEP_BYTES)
        self.fill(register, self.plus(block, half, VECTOR_BYTES), int64(WIDTH * STEP_BYTES))

    def begin(self, sums: tuple[int, int], biases: Any) -> None:
        """Initialise all rows' sums with the biases."""
        for half, register in enumerate(sums):
            self.fill(register, self.plus(biases, half, VECTOR_BYTES), int64(0))

    def end(self, sums: tuple[int, int], out: Any, out_stride: Any) -> None:
        """Store the sums."""
        for half, register in enumerate(sums):
            self.call("tilestored64", register, self.pointer(self.plus(out, half, VECTOR_BYTES)), out_stride)

    def call(self, name: str, *args: Any) -> None:
        """Call an instruction; int arguments are register numbers."""
        values = [ir.Constant(_INT8, one) if isinstance(one, int) else one for one in args]
        kind = ir.FunctionType(ir.VoidType(), [value.type for value in values])
        self.builder.call(cgutils.get_or_insert_function(self.builder.module, kind, f"llvm.x86.{name}"), values)

    def _put(self, address: Any, value: Any, kind: Any) -> None:
        self.builder.store(self.builder.trunc(value, kind), self.builder.inttoptr(address, kind.as_pointer())).align = 1
