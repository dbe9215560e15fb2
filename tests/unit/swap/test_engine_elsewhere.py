"""Hot swap through its port alone: an engine that is elsewhere, as a double."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from osd.io.weight_store import FileWeightStore
from osd.records.acceptance_figures import AcceptanceFigures, Verdict
from osd.records.drafter_id import DrafterId
from osd.records.events import Event
from osd.records.version import WeightManifest
from osd.swap.hot_swap import HotSwap


class EngineElsewhere:
    """A swap port of an engine that is not in this process: it takes versions as given, and says what it is told to."""

    def __init__(self) -> None:
        self.served = [DrafterId("model", 1)]
        self.verdict: Verdict = "sound"
        self.watched: list[bool] = []
        self.roll_backs: list[str] = []
        self._prepared: WeightManifest | None = None

    def prepare(self, manifest: WeightManifest, state: Mapping[str, Tensor]) -> None:
        self._prepared = manifest

    def commit(self, *, watch: bool) -> None:
        assert self._prepared is not None
        self.served.append(DrafterId(self._prepared.kind, self._prepared.number))
        self.watched.append(watch)
        self.verdict, self._prepared = "undecided" if watch else "sound", None

    def figures(self) -> AcceptanceFigures:
        return AcceptanceFigures(self.served[-1], 0.75, 0.25, self.verdict)

    def count_roll_back(self, *, manual: bool) -> None:
        self.roll_backs.append("manual" if manual else "automatic")

    def versions(self) -> list[int]:
        return [one.version for one in self.served]


class Elsewhere:
    """A store, an engine elsewhere, and the watcher between them."""

    def __init__(self, root: Path) -> None:
        self.store, self.engine, self.events = FileWeightStore(root), EngineElsewhere(), list[Event]()
        self.watcher = HotSwap(self.store, self.engine, poll_interval_s=60.0, on_event=self.events.append)
        self.publish()

    def publish(self) -> None:
        self.store.publish({"weight": torch.ones(2)}, kind="model", config={}, parent=None)

    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]


@pytest.fixture
def elsewhere(tmp_path: Path) -> Elsewhere:
    return Elsewhere(tmp_path / "weights")


def test_an_engine_elsewhere_is_kept_at_the_latest_sound_version(elsewhere: Elsewhere) -> None:
    elsewhere.publish()
    elsewhere.watcher.check_now()
    elsewhere.watcher.check_now()
    assert elsewhere.engine.versions() == [1, 2]
    elsewhere.engine.verdict = "worse"
    elsewhere.watcher.check_now()
    elsewhere.watcher.check_now()
    assert elsewhere.engine.versions() == [1, 2, 1]
    assert elsewhere.engine.watched == [True, False]  # what served before is not judged against what was worse
    assert elsewhere.engine.roll_backs == ["automatic"]
    assert [event.message for event in elsewhere.events] == [
        "drafter version 2 -> 1: first-token acceptance fell from 0.75 to 0.25 after the swap"
    ]


def test_a_version_that_was_replaced_meanwhile_is_not_rolled_back(elsewhere: Elsewhere) -> None:
    elsewhere.publish()
    elsewhere.watcher.check_now()
    elsewhere.publish()
    elsewhere.engine.verdict = "worse"
    elsewhere.watcher.check_now()
    assert elsewhere.engine.versions() == [1, 2, 3]
    assert elsewhere.events == []


def test_a_newer_version_that_turns_out_unfit_does_not_keep_a_worse_one_serving(
    elsewhere: Elsewhere, tmp_path: Path
) -> None:
    """It is found unfit only after the verdict on the one that serves was put off for it."""
    elsewhere.publish()
    elsewhere.watcher.check_now()
    elsewhere.publish()
    path = next((tmp_path / "weights").glob("v000003.safetensors"))
    path.write_bytes(path.read_bytes()[:-1])
    elsewhere.engine.verdict = "worse"
    elsewhere.watcher.check_now()
    assert elsewhere.engine.versions() == [1, 2] and elsewhere.kinds() == ["refuse"]
    elsewhere.watcher.check_now()
    assert elsewhere.engine.versions() == [1, 2, 1] and elsewhere.kinds() == ["refuse", "roll_back"]


def test_without_a_sound_predecessor_the_operator_is_told_once(elsewhere: Elsewhere) -> None:
    elsewhere.engine.verdict = "worse"
    elsewhere.watcher.check_now()
    elsewhere.watcher.check_now()
    assert elsewhere.kinds() == ["error"]
    assert "cannot be rolled back" in elsewhere.events[0].message
    assert elsewhere.engine.versions() == [1]
