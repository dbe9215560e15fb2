"""Compiling kernels before they are needed: `python -m osd.kernels.cpu.compiling.build bfloat16-threaded`.

Several such processes share the work: each takes the next kernel that nobody is compiling, and in the end they wait for
one another. They have the lowest priority, and end with the process that started them.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from osd.kernels.cpu.compiling import store
from osd.kernels.cpu.compiling.signatures import KernelSet, samples
from osd.kernels.cpu.kernels import most_threads

_LOOK_S = 0.5


def build(kernels: KernelSet) -> None:
    """Compile and store what is not there yet."""
    missing = list(kernels.names)
    for wait in (False, True):
        for name in missing:
            with store.lock(name, wait=wait) as is_ours:
                if is_ours and not store.marker(kernels, name).is_file():
                    compile_one(kernels, name)
        missing = [name for name in missing if not store.marker(kernels, name).is_file()]


def compile_one(kernels: KernelSet, name: str) -> None:
    """Compile one kernel for all types that it is called with, and store it; its lock is held."""
    import numba

    most_threads(numba)  # chooses the kind of threads, which must be done before anything is compiled for them
    entry = store.stored_entries()[name][-1 if kernels.is_threaded else 0]
    for arguments in samples(name, kernels):
        entry.compile(tuple(map(numba.typeof, arguments)))  # type: ignore[attr-defined]  # a dispatcher of numba's
    store.marker(kernels, name).touch()


def step_back() -> None:
    """Give this process, which leads a session of its own, the lowest priority.

    Where Linux shares a processor between sessions first (autogroup), niceness counts only within one.
    """
    os.nice(19)
    with suppress(OSError):  # a system without autogroups
        Path("/proc/self/autogroup").write_text("19")


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK_S)
    os._exit(1)


def main() -> None:
    """What the arguments name; the second one is the parent's process id."""
    label, parent = sys.argv[1:]
    threading.Thread(target=_end_with, args=(int(parent),), daemon=True).start()
    step_back()
    build(KernelSet.of_label(label))


if __name__ == "__main__":
    main()
