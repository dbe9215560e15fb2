"""Keeping what is loaded, in huge pages and out of collections: nothing is changed by it, nothing more is used."""

from __future__ import annotations

import ctypes
import gc
import mmap
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from osd.machine.memory import exclude_from_gc, use_huge_pages

_HUGE_BYTES = 2 << 20
_COLLAPSE, _THP_DISABLE = 25, 41
"""Numbers of `madvise` (Linux 6.1) and of `prctl`."""

_on_linux = pytest.mark.skipif(sys.platform != "linux", reason="pages are Linux's")


class SmallPages:
    """Memory of this process alone that is in small pages, with other numbers in each."""

    def __init__(self, num_bytes: int) -> None:
        self._map = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._libc = ctypes.CDLL(None)
        self._libc.prctl(_THP_DISABLE, 1, 0, 0, 0)
        self.numbers = np.frombuffer(self._map, np.int64)
        self.numbers[:] = np.arange(len(self.numbers))
        self._libc.prctl(_THP_DISABLE, 0, 0, 0, 0)

    def can_be_collapsed(self) -> bool:
        """Ask the system itself, with the first huge page in here."""
        first = -(-self.numbers.ctypes.data // _HUGE_BYTES) * _HUGE_BYTES
        return bool(self._libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(_HUGE_BYTES), _COLLAPSE) == 0)

    def huge_bytes(self) -> int:
        """Of the mapping that this is in."""
        address, is_here = self.numbers.ctypes.data, False
        for line in Path("/proc/self/smaps").read_text().splitlines():
            name, _, value = line.partition(" ")
            if not name.endswith(":"):
                start, end = (int(one, 16) for one in name.split("-"))
                is_here = start <= address < end
            elif is_here and name == "AnonHugePages:":
                return int(value.split()[0]) << 10
        raise AssertionError("the system does not list this memory")


@_on_linux
def test_what_is_loaded_moves_into_huge_pages_and_stays_the_same() -> None:
    memory = SmallPages(16 * _HUGE_BYTES)
    assert memory.huge_bytes() == 0
    if not SmallPages(4 * _HUGE_BYTES).can_be_collapsed():
        pytest.skip("this system does not move memory into huge pages when asked")
    assert use_huge_pages() >= 15
    assert memory.huge_bytes() >= 15 * _HUGE_BYTES  # the ends of a mapping need not be whole huge pages
    assert np.array_equal(memory.numbers, np.arange(len(memory.numbers)))


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
        exclude_from_gc()
        assert not any(one is loaded[0] for one in gc.get_objects())
    finally:
        gc.unfreeze()


_ENDS = """
import gc
from osd.machine.memory import exclude_from_gc

class Held:
    def __init__(self):
        self.itself = self

    def __del__(self):
        print("collected")

held = Held()
exclude_from_gc()
del held
gc.collect()
print("ends")
"""


def test_what_is_kept_is_let_go_at_the_end() -> None:
    """Bindings made by nanobind print what still lives then as leaked."""
    ended = subprocess.run([sys.executable, "-c", _ENDS], capture_output=True, text=True, check=True, timeout=60)
    assert (ended.stdout.split(), ended.stderr) == (["ends", "collected"], "")


def test_triton_has_nothing_to_complain_of() -> None:
    pytest.importorskip("triton")
    program = "import triton; from osd.machine.memory import exclude_from_gc; exclude_from_gc()"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert ended.stderr == ""
