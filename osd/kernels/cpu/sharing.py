"""Distributes a pass's work over threads that stay together for the whole pass, as in llama.cpp: no start and join per
operation.

A phase is a number of tasks. A free thread draws the next one; no thread goes on before all tasks are done. A thread
whose core is taken by another process thus delays one task only, and a single thread would complete all of them.
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
from osd.kernels.cpu.bits import Array, inlined

_INT64 = ir.IntType(64)
_IS_X86 = platform.machine().lower() in ("x86_64", "amd64")


def _added(typing: Any, address: Any) -> Any:
    """Atomically add one to the int64 at an address; returns its former value."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = builder.inttoptr(args[0], _INT64.as_pointer())
        return builder.atomic_rmw("add", place, ir.Constant(_INT64, 1), "acq_rel")

    return types.int64(types.intp), generate


def _seen(typing: Any, address: Any) -> Any:
    """Read the int64 at an address again; on x86 with the hint that this is a waiting loop."""

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
    """A thread's view of a phase's counters.

    The fields are always of the same types, since numba would compile all callees again for others. They do not keep
    the counters' array alive: the Python caller must hold it until the call returns.
    """

    counters: int
    """Address of the phase's counters, all zero at first: tasks done, then tasks drawn of each part."""
    thread: int
    num_threads: int


@inlined
def turns_at(counters: Array, thread: int, num_threads: int) -> Turns:
    """The turns at the first phase of an array of counters."""
    return Turns(np.int64(counters.ctypes.data), np.int64(thread), np.int64(num_threads))  # type: ignore[arg-type]


@inlined
def later(turns: Turns, num_phases: int) -> Turns:
    """The turns `num_phases` phases later."""
    return Turns(turns.counters + num_phases * (COUNTERS * _COUNTER_BYTES), turns.thread, turns.num_threads)


@inlined
def shared(turns: Turns, num_tasks: int) -> Iterator[int]:
    """The tasks of a phase that this thread draws; ends when all tasks of all threads are done.

    Every thread begins with its own part, the same in every phase with as many tasks: it reads contiguous memory, and
    writes where it wrote before. Then it helps with the other parts.
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
