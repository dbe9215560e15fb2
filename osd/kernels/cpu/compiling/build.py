"""The program that compiles kernels: `python -m osd.kernels.cpu.compiling.build bfloat16-threaded`.

Several such processes share the work: each takes the next kernel that no other is compiling, and finally they wait for
one another. They have the lowest priority, and end when the process that started them ends.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from osd.kernels.cpu.compiling import store
from osd.kernels.cpu.compiling.folders import remove_old
from osd.kernels.cpu.compiling.signatures import KernelSet, samples
from osd.kernels.cpu.kernels import most_threads

_LOOK_S = 0.5


def build(kernels: KernelSet) -> None:
    """Compile and store the kernels that are not stored yet."""
    missing = list(kernels.names)
    for wait in (False, True):
        for name in missing:
            with store.lock(name, wait=wait) as is_ours:
                if is_ours and not store.marker(kernels, name).is_file():
                    compile_one(kernels, name)
        missing = [name for name in missing if not store.marker(kernels, name).is_file()]


def compile_one(kernels: KernelSet, name: str) -> None:
    """Compile one kernel for all its argument types and store it; the caller holds its lock."""
    import numba

    most_threads(numba)  # selects numba's threading layer, which must happen before anything is compiled
    entry = store.stored_entries()[name][-1 if kernels.is_threaded else 0]
    for arguments in samples(name, kernels):
        entry.compile(tuple(map(numba.typeof, arguments)))  # type: ignore[attr-defined]  # a dispatcher of numba's
    store.marker(kernels, name).touch()


def step_back() -> None:
    """Give this process, which leads its own session, the lowest priority.

    Where Linux shares processors between sessions first (autogroup), niceness only counts within a session.
    """
    os.nice(19)
    with suppress(OSError):  # a system without autogroups
        Path("/proc/self/autogroup").write_text("19")


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK_S)
    os._exit(1)


def main() -> None:
    """Compile the kernels named by the first argument; the second is the parent's process id."""
    label, parent = sys.argv[1:]
    threading.Thread(target=_end_with, args=(int(parent),), daemon=True).start()
    step_back()
    build(KernelSet.of_label(label))
    remove_old(store.root())


if __name__ == "__main__":
    main()
