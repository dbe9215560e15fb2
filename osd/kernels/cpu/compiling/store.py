"""Where compiled kernels are kept: a folder for one state of the sources, one numba and one kind of CPU.

numba writes its cache there. It does not notice all that its code depends on, nor does it expect two processes that
write about one function, or one that is killed between its index and its data. So a folder is used for one state only,
a function is compiled under its lock, and a marker says that all of it was written.
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
from osd.kernels.cpu.compiling.signatures import KernelSet

_IMPORTED = re.compile(r"from osd\.kernels\.cpu(\.[\w.]+)? import ([\w, ]+)")
Entries = dict[str, tuple[Callable[..., None], ...]]


def root() -> Path:
    """`NUMBA_CACHE_DIR`, or osd's part of the user's cache folder."""
    if named := os.environ.get("NUMBA_CACHE_DIR"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "osd" / "kernels"


def is_empty() -> bool:
    """Whether nothing was ever compiled for this user; told without importing numba."""
    return not any(root().glob("*/*.done"))


def is_built(kernels: KernelSet) -> bool:
    """Whether all of these are there."""
    return num_built(kernels) == len(kernels.names)


def num_built(kernels: KernelSet) -> int:
    """How many of them are there."""
    return sum(marker(kernels, name).is_file() for name in kernels.names)


def marker(kernels: KernelSet, name: str) -> Path:
    """The file that is there once one kernel is compiled and stored."""
    return _folder() / f"{name}.{kernels.label}.done"


@contextmanager
def lock(name: str, *, wait: bool) -> Iterator[bool]:
    """Be the one process that compiles this kernel; the system frees the lock of one that is killed.

    Args:
        name: of the kernel.
        wait: for another process that has it; else False is yielded then.
    """
    _folder().mkdir(parents=True, exist_ok=True)
    with (_folder() / f"{name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def stored_entries() -> Entries:
    """The kernels, which numba loads from the folder when they are called, or compiles and keeps there.

    Raises:
        ImportError: numba is not installed.
        RuntimeError, OSError: nothing can be kept.
    """
    from numba import config

    module: Any = import_module("osd.kernels.cpu.entries")
    _folder().mkdir(parents=True, exist_ok=True)
    numba_config: Any = config
    before, numba_config.CACHE_DIR = numba_config.CACHE_DIR, str(_folder())
    try:
        entries: Entries = module.entries(_digest())
    finally:
        numba_config.CACHE_DIR = before
    return entries


@cache
def _folder() -> Path:
    return root() / _digest()[:24]


@cache
def _digest() -> str:
    """Of all that the compiled code depends on, and of what numba goes by: the place and time of a file."""
    from llvmlite import binding

    from osd.kernels.cpu.products.amx import HAS_AMX  # the same processor may be allowed it or not
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
    """A file and all files of its package that it imports."""
    package, found, new = entries.parent, set[Path](), {entries}
    while new:
        found |= new
        imports = [one for path in new for one in _IMPORTED.findall(path.read_text())]
        # What is imported may be a module, or a name in one.
        modules = {parent for parent, _ in imports}
        modules |= {f"{parent}.{name}" for parent, names in imports for name in names.split(", ")}
        paths = {package.joinpath(*module.split(".")).with_suffix(".py") for module in modules}
        new = {path for path in paths if path.is_file()} - found
    return sorted(found)
