"""Folders of compiled kernels: those in use and the newest stay, the others go."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from osd.kernels.cpu.compiling import folders
from osd.kernels.cpu.compiling.folders import hold, remove_old
from tests.kit.waiting import PATIENCE_S, wait_for

_DAY_S = 86_400.0


@pytest.fixture(autouse=True)
def released() -> Iterator[None]:
    """What a test holds is let go as by the end of its process."""
    before = dict(folders._held)
    yield
    for path in folders._held.keys() - before.keys():
        os.close(folders._held.pop(path))


def _named(number: int) -> str:
    return f"{number:024x}"


def _folder(root: Path, number: int, *, days_ago: float) -> Path:
    """A folder of compiled kernels, last used so long ago."""
    folder = root / _named(number)
    folder.mkdir()
    for name in ("in-use", "pass.float32-alone.done", "entries.pass-1.nbc"):
        (folder / name).touch()
    then_s = time.time() - days_ago * _DAY_S
    for path in (folder / "in-use", folder):
        os.utime(path, (then_s, then_s))
    return folder


def _names(root: Path) -> set[str]:
    return {path.name for path in root.iterdir()}


def test_the_newest_stay_and_so_do_those_of_the_last_day(tmp_path: Path) -> None:
    for number in range(6):
        _folder(tmp_path, number, days_ago=number + 0.5)
    assert remove_old(tmp_path, num_kept=3) == 3
    assert _names(tmp_path) == {_named(0), _named(1), _named(2)}
    assert remove_old(tmp_path, num_kept=0, kept_s=_DAY_S) == 2
    assert _names(tmp_path) == {_named(0)}


def test_one_that_is_held_stays_until_its_process_ends(tmp_path: Path) -> None:
    old = _folder(tmp_path, 1, days_ago=90)
    with (old / "in-use").open() as other_process:
        fcntl.flock(other_process, fcntl.LOCK_SH)
        assert remove_old(tmp_path, num_kept=0) == 0
        assert (old / "pass.float32-alone.done").exists()
    assert remove_old(tmp_path, num_kept=0) == 1
    assert _names(tmp_path) == set()


def test_holding_a_folder_makes_it_the_newest_and_keeps_it(tmp_path: Path) -> None:
    ours, other = _folder(tmp_path, 1, days_ago=90), _folder(tmp_path, 2, days_ago=80)
    hold(ours)
    assert remove_old(tmp_path, num_kept=1) == 1
    assert ours.exists() and not other.exists()
    assert remove_old(tmp_path, num_kept=0, kept_s=-1.0) == 0, "it is in use"


def test_what_is_none_of_ours_stays(tmp_path: Path) -> None:
    (tmp_path / "another-programs-cache").mkdir()
    (tmp_path / _named(1)).write_text("a file")
    (tmp_path / f".{_named(2)}.removed").mkdir()  # a removal that was killed
    assert remove_old(tmp_path, num_kept=0, kept_s=-1.0) == 0
    assert _names(tmp_path) == {"another-programs-cache", _named(1)}
    assert remove_old(tmp_path / "missing") == 0


def test_who_waits_for_a_folder_that_is_being_removed_gets_a_new_one(tmp_path: Path) -> None:
    folder = _folder(tmp_path, 1, days_ago=90)
    with (folder / "in-use").open("a") as removing:
        fcntl.flock(removing, fcntl.LOCK_EX)
        waiting = threading.Thread(target=hold, args=(folder,), daemon=True)
        waiting.start()
        wait_for(lambda: _num_openings(folder / "in-use") == 2, "the other one to wait for the lock")
        folder.rename(tmp_path / "gone")
    waiting.join(PATIENCE_S)
    assert not waiting.is_alive()
    assert {path.name for path in folder.iterdir()} == {"in-use"}, "nothing is compiled in it yet"
    assert remove_old(tmp_path, num_kept=0, kept_s=-1.0) == 0, "it is in use"


def _num_openings(path: Path) -> int:
    """How often this process has a file open."""
    return sum(os.path.realpath(link) == str(path.resolve()) for link in Path("/proc/self/fd").iterdir())


def test_a_folder_that_cannot_be_written_is_used_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / _named(1)
    folder.mkdir()
    (folder / "in-use").mkdir()  # opening it for writing fails, for root, too
    hold(folder)
    assert remove_old(tmp_path, num_kept=0, kept_s=-1.0) == 0
