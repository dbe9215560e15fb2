"""A tile's sums by the matrix instructions that some x86 processors have (Intel's AMX): sixteen rows at once.

Its registers hold sixteen rows of 64 bytes each. The layout of `osd.models.compiled.tiling` is what they multiply with:
sixteen steps of sixteen outputs, 128 bytes apart. As elsewhere, a row's result does not depend on the rows beside it.
"""

from __future__ import annotations

import ctypes
import platform
from typing import Any

from llvmlite import ir
from numba.core import cgutils

from osd.models.compiled.tiling import STEP_BYTES, WIDTH
from osd.models.compiled.vectors import FEATURES, INT64, VECTOR_BYTES, Code

ROWS = 16
_STEPS = 16
_INT8, _INT16 = ir.IntType(8), ir.IntType(16)
_CONFIG = ir.ArrayType(_INT8, 64)
_POINTER = _INT8.as_pointer()
_COLUMN_BYTES, _NUM_ROWS = 16, 48
"""Where a configuration says, register by register, how long rows are, and how many."""
_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18
_X, _LAST_X = 2, 5
_SUMS, _WEIGHTS, _LAST_WEIGHTS = (0, 1), (3, 4), (6, 7)
"""Registers; the last steps are fewer than sixteen, so theirs are other ones."""


def _is_allowed() -> bool:
    """Linux gives a process these registers only when it asks."""
    if not FEATURES.get("amx-bf16") or platform.system() != "Linux":
        return False
    return int(ctypes.CDLL(None).syscall(_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA)) == 0


HAS_AMX = _is_allowed()


def write_tile(builder: Any, args: Any) -> None:
    """The body of `tile` in `osd.models.compiled.tile`, for up to `ROWS` rows of bfloat16."""
    weights, x, x_stride, out, out_stride, num_steps, num_rows = args
    code = MatrixCode(builder)
    whole, last = builder.udiv(num_steps, int64(_STEPS)), builder.urem(num_steps, int64(_STEPS))
    has_last = builder.icmp_unsigned("!=", last, int64(0))
    row_bytes = int64(VECTOR_BYTES)
    last_bytes = builder.mul(last, int64(STEP_BYTES))
    code.configure(
        {
            **dict.fromkeys((*_SUMS, _X), (num_rows, row_bytes)),
            **dict.fromkeys(_WEIGHTS, (int64(_STEPS), row_bytes)),
            _LAST_X: (builder.select(has_last, num_rows, int64(0)), last_bytes),
            **dict.fromkeys(_LAST_WEIGHTS, (last, builder.select(has_last, row_bytes, int64(0)))),
        }
    )
    for half, register in enumerate(_SUMS):  # every row's begin with the tile's biases
        code.fill(register, code.plus(weights, half, VECTOR_BYTES), int64(0))
    steps = code.plus(weights, WIDTH, STEP_BYTES)

    def add(index: Any, x_register: int, registers: tuple[int, int]) -> None:
        code.fill(x_register, code.plus(x, index, VECTOR_BYTES), x_stride)
        block = code.plus(steps, index, _STEPS * WIDTH * STEP_BYTES)
        for half, register in enumerate(registers):
            code.fill(register, code.plus(block, half, VECTOR_BYTES), int64(WIDTH * STEP_BYTES))
            code.call("tdpbf16ps", _SUMS[half], x_register, register)

    with cgutils.for_range(builder, whole) as loop:
        add(loop.index, _X, _WEIGHTS)
    with builder.if_then(has_last):
        add(whole, _LAST_X, _LAST_WEIGHTS)
    for half, register in enumerate(_SUMS):
        code.call("tilestored64", register, code.pointer(code.plus(out, half, VECTOR_BYTES)), out_stride)
    code.call("tilerelease")


def int64(number: int) -> Any:
    """A constant."""
    return ir.Constant(INT64, number)


class MatrixCode(Code):
    """With the matrix instructions."""

    def pointer(self, address: Any) -> Any:
        """As instructions take it."""
        return self.builder.inttoptr(address, _POINTER)

    def configure(self, shapes: dict[int, tuple[Any, Any]]) -> None:
        """Give registers their rows, and bytes of a row."""
        config = cgutils.alloca_once(self.builder, _CONFIG)
        self.builder.store(ir.Constant(_CONFIG, [1] + [0] * 63), config)  # the first byte names the way they are used
        base = self.builder.ptrtoint(config, INT64)
        for register, (num_rows, column_bytes) in shapes.items():
            self._put(self.plus(base, _NUM_ROWS + register), num_rows, _INT8)
            self._put(self.plus(base, _COLUMN_BYTES + 2 * register), column_bytes, _INT16)
        self.call("ldtilecfg", self.pointer(base))

    def fill(self, register: int, address: Any, stride: Any) -> None:
        """A register's rows, so many bytes apart."""
        self.call("tileloadd64", register, self.pointer(address), stride)

    def call(self, name: str, *args: Any) -> None:
        """An instruction; numbers are registers."""
        values = [ir.Constant(_INT8, one) if isinstance(one, int) else one for one in args]
        kind = ir.FunctionType(ir.VoidType(), [value.type for value in values])
        self.builder.call(cgutils.get_or_insert_function(self.builder.module, kind, f"llvm.x86.{name}"), values)

    def _put(self, address: Any, value: Any, kind: Any) -> None:
        self.builder.store(self.builder.trunc(value, kind), self.builder.inttoptr(address, kind.as_pointer())).align = 1
