"""This process's memory: excluded from garbage collection, returned to the system, or moved to huge pages (Linux).

Each decoding pass reads all weights and so evicts the page tables from the processor's caches. With pages of 2 MiB
instead of 4 KiB there are 512 times fewer table entries to read again; in a virtual machine each lookup is doubled.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import logging
import mmap
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil

_log = logging.getLogger(__name__)
_PAGE, _HUGE_PAGE = 1 << 12, 1 << 21
_COLLAPSE = 25
"""`MADV_COLLAPSE` (Linux 6.1): builds huge pages now, and only of memory that exists now."""
_FULL = 0.9
"""Share of a huge page that must be in use; collapsing emptier ones would increase memory use."""


def trim_heap() -> None:
    """Return freed memory to the system (malloc_trim), which glibc would otherwise hold on to."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def exclude_from_gc() -> None:
    """Exclude everything loaded so far from garbage collection, whose scans would stall decoding, until Python ends.

    Python's own end collects what is left, so that extension modules find none of their objects alive. What stays
    excluded then, nanobind (Triton's bindings) reports as leaked, on stderr.
    """
    gc.collect()
    gc.freeze()
    atexit.unregister(gc.unfreeze)
    atexit.register(gc.unfreeze)


def use_huge_pages() -> int:
    """Move this process's memory into huge pages, which takes about a second per gigabyte.

    Returns:
        The number of huge pages moved; 0 where the system has none.
    """
    if sys.platform != "linux" or mmap.PAGESIZE != _PAGE:
        return 0
    try:
        places = [place for first, end in _own_memory() for place in _used(first, end)]
    except (OSError, psutil.Error) as error:
        _log.info("memory stays in small pages: the system does not say what it is (%s)", error)
        return 0
    libc, size = ctypes.CDLL(None), ctypes.c_size_t(_HUGE_PAGE)
    return sum(libc.madvise(ctypes.c_void_p(place * _HUGE_PAGE), size, _COLLAPSE) == 0 for place in places)


def _own_memory() -> Iterator[tuple[int, int]]:
    """(first, end) in units of whole huge pages, for each private writable mapping of this process."""
    for mapping in psutil.Process().memory_maps(grouped=False):
        if mapping.path in ("[heap]", "[anon]") and mapping.perms.startswith("rw"):
            start, end = (int(address, 16) for address in mapping.addr.split("-"))
            yield -(-start // _HUGE_PAGE), end // _HUGE_PAGE


def _used(first: int, end: int) -> list[int]:
    """Which of the huge pages in `range(first, end)` are mostly resident in memory."""
    if end <= first:
        return []
    in_one = _HUGE_PAGE // _PAGE
    with Path("/proc/self/pagemap").open("rb") as file:
        file.seek(first * in_one * 8)
        entries = np.fromfile(file, np.int64, (end - first) * in_one)
    is_there = (entries < 0).reshape(-1, in_one)  # bit 63 of a pagemap entry: the page is present
    used: list[int] = (first + np.flatnonzero(is_there.mean(axis=1) >= _FULL)).tolist()
    return used
