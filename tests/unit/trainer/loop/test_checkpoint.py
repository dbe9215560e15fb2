"""The trainer's checkpoint: whole or ignored, never half."""

from __future__ import annotations

import errno
import logging
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from osd.records.outcome import Outcome
from tests.kit.trainer_fakes import make_outcome
from trainer.loop.checkpoint import CheckpointFolder


def _records(first: int, end: int) -> list[tuple[int, Outcome]]:
    return [(number, make_outcome(f"q-{number}")) for number in range(first, end)]


def _save(folder: CheckpointFolder, **values: Any) -> None:
    folder.save(
        **{
            "tensors": {"student/a": torch.arange(4.0), "student/ids": torch.arange(3)},
            "optimizer": {},
            "progress": {"steps": 7},
            "new_records": [],
            "oldest": 0,
            **values,
        }
    )


def test_everything_comes_back(tmp_path: Path) -> None:
    parameter = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter], 1e-2)
    (parameter**2).sum().backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    _save(CheckpointFolder(tmp_path), optimizer=optimizer.state_dict(), new_records=_records(0, 3))
    loaded = CheckpointFolder(tmp_path).load()
    assert loaded is not None
    assert torch.equal(loaded.tensors["student/a"], torch.arange(4.0)) and loaded.progress == {"steps": 7}
    assert torch.equal(loaded.tensors["student/ids"], torch.arange(3))
    assert [(number, outcome.request_id) for number, outcome in loaded.records] == [(0, "q-0"), (1, "q-1"), (2, "q-2")]
    assert loaded.records[0][1] == make_outcome("q-0")
    other = torch.optim.AdamW([parameter], 1e-2)
    other.load_state_dict(dict(loaded.optimizer))
    assert torch.equal(other.state[parameter]["exp_avg"], optimizer.state[parameter]["exp_avg"])
    assert other.param_groups[0]["betas"] == [0.9, 0.999]


def test_outcomes_are_written_once_and_dropped_when_forgotten(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    _save(folder, new_records=_records(0, 4))
    first = next(tmp_path.glob("outcomes-*"))
    written_at = first.stat().st_mtime_ns
    _save(folder, new_records=_records(4, 6), oldest=2)
    assert first.stat().st_mtime_ns == written_at
    loaded = CheckpointFolder(tmp_path).load()
    assert loaded is not None and [number for number, _ in loaded.records] == [2, 3, 4, 5]
    resumed = CheckpointFolder(tmp_path)
    resumed.load()
    _save(resumed, new_records=_records(6, 7), oldest=5)
    assert not first.exists() and len(list(tmp_path.glob("outcomes-*"))) == 2


def test_none_there_is_no_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert CheckpointFolder(tmp_path / "new").load() is None and not caplog.records


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "foreign", "outcomes cut", "outcomes gone"])
def test_what_is_torn_or_foreign_is_ignored_and_said(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    _save(CheckpointFolder(tmp_path), new_records=_records(0, 2))
    path, outcomes = tmp_path / "checkpoint.safetensors", next(tmp_path.glob("outcomes-*"))
    content = path.read_bytes()
    if damage == "cut":
        path.write_bytes(content[:-5])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "flipped":
        path.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    elif damage == "foreign":
        from safetensors.torch import save_file

        save_file({"a": torch.ones(1)}, path)
    elif damage == "outcomes cut":
        outcomes.write_bytes(outcomes.read_bytes()[:-7])
    else:
        outcomes.unlink()
    with caplog.at_level(logging.WARNING):
        assert CheckpointFolder(tmp_path).load() is None
    assert "is ignored, training starts from the published weights" in caplog.text


def test_a_save_that_fails_leaves_the_previous_one_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = CheckpointFolder(tmp_path)
    _save(folder, new_records=_records(0, 2))

    real_sync, num_files = os.fsync, 0

    def full(descriptor: int) -> None:
        nonlocal num_files
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            num_files += 1
            if num_files == 2:  # the new outcomes have found room, the checkpoint has not
                raise OSError(errno.ENOSPC, "No space left on device")
        real_sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            _save(folder, progress={"steps": 8}, new_records=_records(2, 3))
    loaded = CheckpointFolder(tmp_path).load()
    assert loaded is not None and loaded.progress == {"steps": 7} and len(loaded.records) == 2
    _save(folder, progress={"steps": 9}, new_records=_records(2, 4))
    loaded = CheckpointFolder(tmp_path).load()
    assert loaded is not None and loaded.progress == {"steps": 9} and len(loaded.records) == 4
    assert not list(tmp_path.glob("*.tmp"))


def test_an_optimizer_state_that_needs_pickle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="without pickle"):
        _save(CheckpointFolder(tmp_path), optimizer={"state": {0: object()}})
