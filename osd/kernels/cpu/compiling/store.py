"""Where compiled kernels are stored: one folder per state of the sources, numba version and kind of CPU.

numba writes its cache there. numba's cache does not track all that its code depends on, and is not safe against two
processes that write the same function, or one that is killed between index and data. A folder is therefore used for one
state only, a function is compiled under its lock, and a marker file records that it was written completely.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from osd.kernels import cpu
from osd.kernels.cpu.compiling.folders import hold
from osd.kernels.cpu.compiling.signatures import KernelSet

_IMPORTED = re.compile(r"from osd\.kernels\.cpu(\.[\w.]+)? import ([\w, ]+)")
Entries = dict[str, tuple[Callable[..., None], ...]]


def root() -> Path:
    """`NUMBA_CACHE_DIR`, or osd's folder in the user's cache folder."""
    if named := os.environ.get("NUMBA_CACHE_DIR"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "osd" / "kernels"


def is_empty() -> bool:
    """Whether nothing was ever compiled for this user; does not import numba."""
    return not any(root().glob("*/*.done"))


def is_built(kernels: KernelSet) -> bool:
    """Whether all kernels of a set are stored."""
    return num_built(kernels) == len(kernels.names)


def num_built(kernels: KernelSet) -> int:
    """The number of stored kernels of a set."""
    return sum(marker(kernels, name).is_file() for name in kernels.names)


def marker(kernels: KernelSet, name: str) -> Path:
    """The file whose existence says that a kernel is compiled and stored."""
    return _folder() / f"{name}.{kernels.label}.done"


@contextmanager
def lock(name: str, *, wait: bool) -> Iterator[bool]:
    """Hold a kernel's lock; the system releases the lock of a process that is killed. Yields whether it is held.

    Args:
        name: of the kernel.
        wait: wait for another process that holds it; otherwise yields False in that case.
    """
    hold(_folder())
    with (_folder() / f"{name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def stored_entries() -> Entries:
    """The kernels, which numba loads from the folder at their first call, or compiles and stores there.

    Raises:
        ImportError: numba is not installed.
        RuntimeError, OSError: nothing can be stored.
    """
    from numba import config

    module: Any = import_module("osd.kernels.cpu.entries")
    hold(_folder())
    numba_config: Any = config
    before, numba_config.CACHE_DIR = numba_config.CACHE_DIR, str(_folder())
    try:
        entries: Entries = module.entries(_digest())
    finally:
        numba_config.CACHE_DIR = before
    return entries


def _folder() -> Path:
    return root() / _digest()[:24]


@cache
def _digest() -> str:
    """A digest of all that the compiled code depends on, and of the path and time of the file that numba checks."""
    from llvmlite import binding

    from osd.kernels.cpu.products.amx import HAS_AMX  # the same processor may or may not permit it
    from osd.kernels.cpu.products.blocking import BLOCKING

    here = Path(cpu.__file__).parent
    entries = here / "entries.py"
    about = (
        binding.get_host_cpu_name(),
        binding.get_host_cpu_features().flatten(),
        HAS_AMX,
        BLOCKING,
        *map(os.environ.get, ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES")),
        sys.version,
        version("numba"),
        version("llvmlite"),
        str(entries.resolve()),
        entries.stat().st_mtime_ns,
    )
    types = Path(__file__).with_name("signatures.py")
    sources = "".join(path.read_text() for path in (*_compiled_from(entries), types))
    return hashlib.sha256((sources + repr(about)).encode()).hexdigest()


def _compiled_from(entries: Path) -> list[Path]:
    """A file and all files of its package that it imports, directly or not."""
    package, found, new = entries.parent, set[Path](), {entries}
    while new:
        found |= new
        imports = [one for path in new for one in _IMPORTED.findall(path.read_text())]
        # An import may name a module, or an object in one.
        modules = {parent for parent, _ in imports}
        modules |= {f"{parent}.{name}" for parent, names in imports for name in names.split(", ")}
        paths = {package.joinpath(*module.split(".")).with_suffix(".py") for module in modules}
        new = {path for path in paths if path.is_file()} - found
    return sorted(found)
