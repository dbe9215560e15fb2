"""This process's memory: kept out of collections, given back, or, on Linux, moved into huge pages.

A pass reads all weights in turn, and what follows it finds nothing in the processor's caches, the tables of pages
among it. With pages of two megabytes there are 512 times fewer to look up; a virtual machine looks each up twice.
"""

from __future__ import annotations

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
"""`MADV_COLLAPSE` (Linux 6.1): at once; it says nothing of memory that comes later."""
_FULL = 0.9
"""Of a huge page: where less is used, it would take up more memory."""


def give_back() -> None:
    """Return to the system what this process has freed, which glibc would keep."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def keep() -> None:
    """What is loaded stays: leave it out of garbage collections, which would stop everything to look through it."""
    gc.collect()
    gc.freeze()


def use_huge_pages() -> int:
    """Move what is in memory now into huge pages: a second or so a gigabyte, once.

    Returns:
        How many are in use then; none where the system has none.
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
    """The whole huge pages, from one number to another, of each mapping that this process alone writes."""
    for mapping in psutil.Process().memory_maps(grouped=False):
        if mapping.path in ("[heap]", "[anon]") and mapping.perms.startswith("rw"):
            start, end = (int(address, 16) for address in mapping.addr.split("-"))
            yield -(-start // _HUGE_PAGE), end // _HUGE_PAGE


def _used(first: int, end: int) -> list[int]:
    """Of the huge pages from one number to another, those that are in memory."""
    if end <= first:
        return []
    in_one = _HUGE_PAGE // _PAGE
    with Path("/proc/self/pagemap").open("rb") as file:
        file.seek(first * in_one * 8)
        entries = np.fromfile(file, np.int64, (end - first) * in_one)
    is_there = (entries < 0).reshape(-1, in_one)  # the highest bit says so
    used: list[int] = (first + np.flatnonzero(is_there.mean(axis=1) >= _FULL)).tolist()
    return used
