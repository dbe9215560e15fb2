"""The spill file keeps its order and its bound, and survives crashes and a full disk."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import msgspec
import pytest

from osd.io.spill import SpillFile, adopt_spill
from tests.kit.outcome_samples import sample_outcome


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "outcomes.spill"


def _fill(spill: SpillFile, *names: str) -> None:
    for name in names:
        assert spill.append(sample_outcome(name))


def _names(spill: SpillFile) -> list[str]:
    return [outcome.request_id for outcome in spill.replay()]


def test_outcomes_come_back_oldest_first_and_once(path: Path) -> None:
    spill = SpillFile(path, 1 << 20)
    _fill(spill, "a", "b", "c")
    assert list(spill.replay()) == [sample_outcome("a"), sample_outcome("b"), sample_outcome("c")]
    assert _names(spill) == []


def test_an_engine_takes_over_the_file_of_before_engines_had_ids(path: Path) -> None:
    former = SpillFile(path, 1 << 20)
    _fill(former, "a", "b")
    former.close()
    own, another = path.with_name("one.spill"), path.parent / "deeper" / "two.spill"
    adopt_spill(path, own)
    adopt_spill(path, another)  # comes too late
    assert _names(SpillFile(another, 1 << 20)) == []
    later = SpillFile(path, 1 << 20)
    _fill(later, "c")
    adopt_spill(path, own)  # which it has: nothing of either is lost
    assert _names(SpillFile(own, 1 << 20)) == ["a", "b"]
    assert _names(later) == ["c"]


def test_leaving_the_loop_keeps_the_outcome_in_hand(path: Path) -> None:
    spill = SpillFile(path, 1 << 20)
    _fill(spill, "a", "b", "c")
    for outcome in spill.replay():
        if outcome.request_id == "b":
            break
    assert _names(spill) == ["b", "c"]


def test_a_new_process_goes_on_where_the_former_died(path: Path) -> None:
    former = SpillFile(path, 1 << 20)
    _fill(former, "a", "b", "c")
    replay = former.replay()
    next(replay)
    next(replay)  # "a" is consumed, "b" in hand when the process dies
    former.close()
    spill = SpillFile(path, 1 << 20)
    _fill(spill, "d")
    assert _names(spill) == ["b", "c", "d"]


def test_a_process_that_dies_while_emptying_the_file_loses_nothing_later(path: Path) -> None:
    former = SpillFile(path, 1 << 20)
    _fill(former, "a", "b")
    next(replay := former.replay())
    next(replay)
    former.close()
    os.truncate(path, 16)  # emptied, but the offset in the header still points past the end
    second = SpillFile(path, 1 << 20)
    _fill(second, "c", "d")
    second.close()
    assert _names(SpillFile(path, 1 << 20)) == ["c", "d"]


def test_an_outcome_appended_during_replay_is_replayed_too(path: Path) -> None:
    spill = SpillFile(path, 1 << 20)
    _fill(spill, "a")
    names: list[str] = []
    for outcome in spill.replay():
        if not names:
            _fill(spill, "b")
        names.append(outcome.request_id)
    assert names == ["a", "b"]


def test_a_full_file_refuses_and_has_room_again_after_replay(path: Path) -> None:
    spill = SpillFile(path, 2000)
    count = 0
    while spill.append(sample_outcome(str(count))):
        count += 1
    assert count > 1
    assert path.stat().st_size <= 2000
    assert len(_names(spill)) == count
    _fill(spill, "again")
    assert _names(spill) == ["again"]


def test_no_room_at_all_makes_no_file(path: Path) -> None:
    spill = SpillFile(path, 0)
    assert not spill.append(sample_outcome())
    assert _names(spill) == []
    assert not path.exists()


@pytest.mark.parametrize("lost_bytes", [1, 100])
def test_a_torn_tail_is_dropped(path: Path, lost_bytes: int) -> None:
    former = SpillFile(path, 1 << 20)
    _fill(former, "a", "b")
    former.close()
    os.truncate(path, path.stat().st_size - lost_bytes)
    spill = SpillFile(path, 1 << 20)
    _fill(spill, "c")
    assert _names(spill) == ["a", "c"]


def test_a_flipped_bit_is_noticed(path: Path) -> None:
    former = SpillFile(path, 1 << 20)
    _fill(former, "a", "b")
    former.close()
    data = bytearray(path.read_bytes())
    data[-10] ^= 1
    path.write_bytes(data)
    assert _names(SpillFile(path, 1 << 20)) == ["a"]


@pytest.mark.parametrize("content", [b"", b"x", b"something else entirely, and longer than a header"])
def test_a_foreign_file_is_started_anew(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    spill = SpillFile(path, 1 << 20)
    _fill(spill, "a")
    assert _names(spill) == ["a"]


def test_an_outcome_of_another_schema_version_is_skipped(path: Path) -> None:
    spill = SpillFile(path, 1 << 20)
    _fill(spill, "a")
    assert spill.append(msgspec.structs.replace(sample_outcome("future"), schema_version=99))
    _fill(spill, "b")
    assert _names(spill) == ["a", "b"]


def test_a_full_disk_is_a_refusal_and_harms_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spill = SpillFile(path, 1 << 20)
    _fill(spill, "a")
    real_pwrite = os.pwrite

    def half_then_full(fd: int, data: bytes, offset: int) -> int:
        if len(data) > 100:
            return real_pwrite(fd, data[:100], offset)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", half_then_full)
        assert not spill.append(sample_outcome("b"))
    _fill(spill, "c")
    spill.close()
    assert _names(SpillFile(path, 1 << 20)) == ["a", "c"]


def test_a_folder_that_cannot_be_written_is_tried_again(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.write_text("a file where the folder should be")
    spill = SpillFile(folder / "outcomes.spill", 1 << 20)
    assert not spill.append(sample_outcome("a"))
    folder.unlink()
    _fill(spill, "b")
    assert _names(spill) == ["b"]


def test_a_file_in_use_is_left_alone(path: Path) -> None:
    first = SpillFile(path, 1 << 20)
    _fill(first, "a")
    second = SpillFile(path, 1 << 20)
    assert not second.append(sample_outcome("b"))
    assert _names(first) == ["a"]


def test_only_its_owner_can_read_it(path: Path) -> None:
    _fill(SpillFile(path, 1 << 20), "a")
    assert path.stat().st_mode & 0o777 == 0o600
