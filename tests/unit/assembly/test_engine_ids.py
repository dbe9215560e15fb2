"""Two engines of one machine that write one stream: each has a name and a spill file."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import msgspec
import pytest
from pydantic import ValidationError

from osd.assembly.recorder import open_recorder
from osd.config.paths import former_spill_path, spill_path
from osd.config.settings import Config
from osd.config.target import EngineConfig
from osd.io.spill import SpillFile
from osd.records.outcome import Outcome
from tests.kit.outcome_samples import sample_outcome

_NOBODY = "redis://127.0.0.1:8629/0"
_SPILL_BYTES = 1 << 20


def _outcome(engine_id: str) -> Outcome:
    return msgspec.structs.replace(sample_outcome(f"of {engine_id}"), engine_id=engine_id)


def _spilled(state_dir: Path, engine_id: str) -> list[Outcome]:
    return list(SpillFile(spill_path(state_dir, engine_id), _SPILL_BYTES).replay())


def test_engines_spill_apart_while_redis_is_away(tmp_path: Path) -> None:
    former = SpillFile(former_spill_path(tmp_path), _SPILL_BYTES)
    assert former.append(sample_outcome("of before"))
    former.close()
    recorders = {
        name: open_recorder(Config(state_dir=tmp_path, engine=EngineConfig(id=name)), _NOBODY)
        for name in ("left", "right")
    }
    for name, recorder in recorders.items():
        recorder.record(partial(_outcome, name))
    for recorder in recorders.values():
        assert recorder.flush(30)
        assert (recorder.counters()["outcomes_spilled"], recorder.counters()["outcomes_dropped"]) == (1, 0)
        recorder.close()
        recorder._spill.close()  # type: ignore[attr-defined]  # as the end of its process does
    assert _spilled(tmp_path, "left") == [sample_outcome("of before"), _outcome("left")]
    assert _spilled(tmp_path, "right") == [_outcome("right")]


def test_an_engine_takes_over_what_engines_that_are_gone_left(tmp_path: Path) -> None:
    """In a cluster every engine process has a name of its own."""
    for name in ("gone", "runs"):
        spill = SpillFile(spill_path(tmp_path, name), _SPILL_BYTES)
        assert spill.append(_outcome(name))
        if name == "gone":
            spill.close()
    recorder = open_recorder(Config(state_dir=tmp_path, engine=EngineConfig(id="next")), _NOBODY)
    recorder.close()
    recorder._spill.close()  # type: ignore[attr-defined]  # as the end of its process does
    assert _spilled(tmp_path, "next") == [_outcome("gone")]
    assert not spill_path(tmp_path, "gone").exists()
    spill.close()
    assert _spilled(tmp_path, "runs") == [_outcome("runs")]


@pytest.mark.parametrize("name", ["", "../up", "a b", "x" * 65])
def test_a_name_that_is_no_file_name_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="engine|id"):
        EngineConfig(id=name)
