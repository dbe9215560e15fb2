"""Keeping what is loaded, in huge pages and out of collections: nothing is changed by it, nothing more is used."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from osd.machine.memory import keep, use_huge_pages

_HUGE_BYTES = 2 << 20

_on_linux = pytest.mark.skipif(sys.platform != "linux", reason="pages are Linux's")


def _huge_bytes() -> int:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("AnonHugePages"))


@_on_linux
def test_what_is_loaded_is_in_huge_pages_and_still_there() -> None:
    objects, numbers = list(range(100_000)), np.arange(1 << 21)
    num_moved = use_huge_pages()
    assert _huge_bytes() >= num_moved * _HUGE_BYTES  # none where the system has none
    assert objects == list(range(100_000))
    assert np.array_equal(numbers, np.arange(1 << 21))


@_on_linux
def test_memory_that_is_hardly_used_stays_so() -> None:
    use_huge_pages()  # so that only what is made here is left
    before = psutil.Process().memory_info().rss
    hardly_used = np.zeros(128 * _HUGE_BYTES, np.uint8)
    hardly_used[:: 2 * _HUGE_BYTES] = 1
    used = psutil.Process().memory_info().rss - before
    use_huge_pages()
    grown = psutil.Process().memory_info().rss - before - used
    assert grown < 16 * _HUGE_BYTES
    assert int(hardly_used.sum()) == 64


def test_a_system_that_says_nothing_of_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sandboxes leave parts of /proc out; the engine starts all the same."""

    def refused(*_args: object, **_options: object) -> None:
        raise psutil.AccessDenied(1)

    monkeypatch.setattr(psutil.Process, "memory_maps", refused)
    assert use_huge_pages() == 0


def test_what_is_kept_is_not_looked_through_again() -> None:
    loaded = [[number] for number in range(1000)]
    try:
        keep()
        assert not any(one is loaded[0] for one in gc.get_objects())
    finally:
        gc.unfreeze()
