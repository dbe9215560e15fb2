"""Work shared by threads that stay together through a whole pass, as llama.cpp's do: no start and end per operation.

A phase is a number of tasks; whoever is free draws the next, and nobody goes on before all are done. So a thread that
was held up (another process has its core) holds up one task, and even one thread alone would get everything done.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from osd.models.compiled.arguments import COUNTERS
from osd.models.compiled.bits import Array, inner

_INT64 = ir.IntType(64)
_IS_X86 = platform.machine().lower() in ("x86_64", "amd64")


def _added(typing: Any, address: Any) -> Any:
    """Add one to the int64 there; what it was before."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = builder.inttoptr(args[0], _INT64.as_pointer())
        return builder.atomic_rmw("add", place, ir.Constant(_INT64, 1), "acq_rel")

    return types.int64(types.intp), generate


def _seen(typing: Any, address: Any) -> Any:
    """The int64 there, once more; on x86 the core is told that this is waiting."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if _IS_X86:
            kind = ir.FunctionType(ir.VoidType(), [])
            name = "llvm.x86.sse2.pause"
            pause = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
            builder.call(pause, [])
        place = builder.inttoptr(args[0], _INT64.as_pointer())
        return builder.load_atomic(place, "acquire", 8)

    return types.int64(types.intp), generate


PHASE = 8 * COUNTERS
"""Bytes from one phase's counters to the next one's."""
_add: Any = intrinsic(_added)
_read: Any = intrinsic(_seen)


@inner
def address(counters: Array) -> int:
    """Of the first phase's, always of one type: for every other type all that is called is compiled once more.

    It keeps nothing alive: whoever is called from Python must have them from there, where they outlast the call.
    """
    return np.int64(counters.ctypes.data)  # type: ignore[return-value]


@inner
def shared(counters: int, num_tasks: int) -> Iterator[int]:
    """The tasks of a phase that nobody else has drawn; ends when all are done, by whomever.

    Args:
        counters: address of the phase's two: drawn, done; both zero at first.
        num_tasks: of the phase.
    """
    while True:
        task: int = _add(counters)
        if task >= num_tasks:
            break
        yield task
        _add(counters + 8)
    while _read(counters + 8) < num_tasks:
        pass
