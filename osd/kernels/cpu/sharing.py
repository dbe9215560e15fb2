"""Work shared by threads that stay together through a whole pass, as llama.cpp's do: no start and end per operation.

A phase is a number of tasks; whoever is free draws another, and nobody goes on before all are done. So a thread that
was held up (another process has its core) holds up one task, and even one thread alone would get everything done.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from osd.kernels.cpu.arguments import COUNTERS
from osd.kernels.cpu.bits import Array, inner

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


_add: Any = intrinsic(_added)
_read: Any = intrinsic(_seen)
_COUNTER_BYTES = 8
_MOST_PARTS = COUNTERS - 1


class Turns(NamedTuple):
    """A thread's turns at the tasks of a phase.

    Numbers, always of one type: for every other type all that is called is compiled once more. They keep nothing alive:
    whoever is called from Python must have the counters from there, where they outlast the call.
    """

    counters: int
    """Address of the phase's, all zero at first: how many tasks are done, then how many are drawn of each part."""
    thread: int
    num_threads: int


@inner
def turns_at(counters: Array, thread: int, num_threads: int) -> Turns:
    """At the first phase that an array has counters of."""
    return Turns(np.int64(counters.ctypes.data), np.int64(thread), np.int64(num_threads))  # type: ignore[arg-type]


@inner
def later(turns: Turns, num_phases: int) -> Turns:
    """So many phases later."""
    return Turns(turns.counters + num_phases * (COUNTERS * _COUNTER_BYTES), turns.thread, turns.num_threads)


@inner
def shared(turns: Turns, num_tasks: int) -> Iterator[int]:
    """The tasks of a phase that nobody else has drawn; ends when all are done, by whomever.

    Every thread begins with a part of its own, the same in every phase of as many tasks: what it reads lies in a row,
    and where it writes was its own before, too. Only then it helps others.
    """
    num_parts = min(turns.num_threads, _MOST_PARTS)
    for offset in range(num_parts):
        part = (turns.thread + offset) % num_parts
        first, stop = part * num_tasks // num_parts, (part + 1) * num_tasks // num_parts
        drawn = turns.counters + (1 + part) * _COUNTER_BYTES
        while True:
            task = first + _add(drawn)
            if task >= stop:
                break
            yield task
            _add(turns.counters)
    while _read(turns.counters) < num_tasks:
        pass
