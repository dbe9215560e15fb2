"""The referee with a real store: versions on trial, rolled back, refused, pinned, and what an operator does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from actors.supervisor.version_judge import VersionJudge
from osd.config.settings import Config, load_config
from osd.fleet.heartbeat import EngineReport, QueryRounds
from osd.io.weight_store import FileWeightStore
from osd.records.drafter_id import DrafterId
from osd.records.errors import EngineUnavailableError, UnknownVersionError, WeightsRefusedError
from osd.records.events import Event
from tests.kit.reports import engine_report
from tests.kit.stores import weights_dir


class _Fleet:
    """Engines that serve what they are told to, a store, and the judge between them; time stands still."""

    def __init__(self, root: Path, engines: str = "abc") -> None:
        flags = {"swap": {"min_rounds": 20, "watch_rounds": 40}, "drafter": {"kind": "model"}}
        self.config: Config = load_config(flags={"state_dir": root, **flags})
        self.store = FileWeightStore(weights_dir(root, "tiny", "model"))
        self.engines, self.events, self.now_s = list(engines), list[Event](), 0.0
        self.serving = dict.fromkeys(engines, 1)
        self.judge = self.new_judge()
        self.publish()

    def new_judge(self) -> VersionJudge:
        judge = VersionJudge(self.config, self.present, self.events.append, clock=lambda: self.now_s)
        self.now_s += 60.0  # in which every engine has reported
        return judge

    def present(self) -> list[EngineReport]:
        return [engine_report(name, drafter=DrafterId("model", self.serving[name])) for name in self.engines]

    def publish(self, fence: int = 0) -> int:
        weights = {"weight": torch.ones(2)}
        return self.store.publish(weights, kind="model", config={}, parent=None, fence=fence).number

    def beat(self, *rounds: tuple[str, QueryRounds], refused: tuple[str, int] | None = None) -> dict[str, int]:
        """Every engine reports and obeys, and the judge looks; twice, so that what it decided is obeyed."""
        for _ in range(2):
            for report in self.present():
                own = tuple(one for name, one in rounds if name == report.engine_id)
                why = {refused[1]: "torn"} if refused and refused[0] == report.engine_id else {}
                more = engine_report(report.engine_id, drafter=report.drafter, rounds=own, refused=why)
                self.judge.take(more)
                version = self.judge.version_for(report.engine_id)
                if version is not None and version not in why:
                    self.serving[report.engine_id] = version
            self.judge.look()
        return self.serving

    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]

    def latest(self) -> int:
        latest = self.store.latest()
        assert latest is not None
        return latest.number


def _queries(engine: str, version: int, num_accepted: int, num: int = 4) -> list[tuple[str, QueryRounds]]:
    return [(engine, QueryRounds(version, f"q{number}", 10, num_accepted)) for number in range(num)]


@pytest.fixture
def fleet(tmp_path: Path) -> _Fleet:
    return _Fleet(tmp_path)


def test_a_bad_version_is_rolled_back_before_the_others_have_it(fleet: _Fleet) -> None:
    fleet.beat(*_queries("b", 1, 9))
    number = fleet.publish()
    assert fleet.beat() == fleet.beat() == {"a": number, "b": 1, "c": 1}
    assert fleet.judge.status().canaries == ("a",)
    assert fleet.beat(*_queries("a", number, 1)) == {"a": 1, "b": 1, "c": 1}
    assert fleet.beat() == {"a": 1, "b": 1, "c": 1}
    assert fleet.kinds() == ["roll_back"]
    assert (
        fleet.events[0].message
        == "drafter version 2 -> 1: first-token acceptance fell from 0.90 to 0.10 after the swap"
    )
    assert fleet.events[0].data == {"version": 2, "to": 1, "manual": 0}
    assert fleet.latest() == 1 and "acceptance fell" in fleet.store.load(2)[0].rolled_back
    status = fleet.judge.status()
    assert (status.roll_backs, status.manual_roll_backs, status.trial) == (1, 0, None)


def test_a_good_version_reaches_all_and_a_late_engine_starts_with_it_only_then(fleet: _Fleet) -> None:
    fleet.beat(*_queries("b", 1, 8))
    number = fleet.publish()
    fleet.beat()
    first = fleet.store.to_start_with()
    assert first is not None and first.number == 1 and fleet.latest() == number
    fleet.beat(*_queries("a", number, 8))
    assert fleet.beat() == {"a": 2, "b": 2, "c": 2}
    assert fleet.kinds() == ["confirm"]
    first = fleet.store.to_start_with()
    assert first is not None and first.number == number


def test_a_restarted_judge_goes_on_with_the_trial(fleet: _Fleet) -> None:
    fleet.beat()
    number = fleet.publish()
    fleet.beat()
    fleet.judge = fleet.new_judge()
    assert fleet.beat() == {"a": number, "b": 1, "c": 1}
    assert fleet.beat(*_queries("b", 1, 9), *_queries("a", number, 0)) == {"a": 1, "b": 1, "c": 1}


def test_a_judge_that_has_just_started_listens_first(tmp_path: Path) -> None:
    fleet = _Fleet(tmp_path, engines="a")
    fleet.beat()
    number = fleet.publish()
    fleet.judge = VersionJudge(fleet.config, fleet.present, fleet.events.append, clock=lambda: fleet.now_s)
    fleet.beat()
    fleet.beat()
    assert fleet.judge.status().trial == number and fleet.kinds() == []
    fleet.now_s += 60.0
    fleet.beat()
    assert fleet.kinds() == ["confirm"]


def test_a_refused_version_stays_nobodys(fleet: _Fleet) -> None:
    fleet.beat()
    number = fleet.publish()
    fleet.beat()
    fleet.beat(refused=("a", number))
    assert fleet.latest() == 1
    assert "refused by engine a: torn" in fleet.store.load(number)[0].rolled_back
    with pytest.raises(WeightsRefusedError, match="refused by engine a: torn"):
        fleet.judge.roll_back(number, "try again")
    assert fleet.judge.status().roll_backs == 0


def test_an_operators_roll_back_reaches_all_at_once(fleet: _Fleet) -> None:
    fleet.beat()
    number = fleet.publish()
    fleet.beat()
    assert fleet.judge.roll_back(1, "was better").number == 1
    assert fleet.beat() == {"a": 1, "b": 1, "c": 1}
    assert fleet.events[-1].message == f"drafter version {number} -> 1, by hand: was better"
    assert fleet.events[-1].data == {"version": number, "to": 1, "manual": 1}
    with pytest.raises(UnknownVersionError, match="there is no drafter version 9"):
        fleet.judge.roll_back(9, "mistyped")
    status = fleet.judge.status()
    assert (status.roll_backs, status.manual_roll_backs) == (1, 1)


def test_a_roll_back_in_another_process_is_counted_and_told(fleet: _Fleet) -> None:
    """As `osd drafter rollback` does; also of a version that no engine had yet."""
    fleet.beat()
    fleet.publish()
    fleet.publish()
    fleet.store.roll_back(to=1, reason="too early")
    assert fleet.beat() == {"a": 1, "b": 1, "c": 1}
    fleet.beat()
    assert [event.message for event in fleet.events] == ["drafter version 3 -> 1, by hand: too early"]
    assert fleet.judge.status().manual_roll_backs == 1


def test_a_pinned_version_outlasts_publishes_and_a_restart(fleet: _Fleet) -> None:
    fleet.beat()
    fleet.judge.pin(1, "a demonstration")
    number = fleet.publish()
    fleet.beat()
    fleet.judge = fleet.new_judge()
    assert fleet.beat() == {"a": 1, "b": 1, "c": 1}
    assert fleet.judge.status().pinned == "a demonstration"
    fleet.judge.unpin()
    fleet.beat()
    assert fleet.beat() == {"a": number, "b": 1, "c": 1}
    assert fleet.kinds() == ["pin", "unpin"]


def test_without_a_sound_predecessor_the_operator_is_told_once(fleet: _Fleet) -> None:
    fleet.beat(*_queries("b", 1, 9))
    number = fleet.publish()
    fleet.beat()
    (weights_dir(fleet.config.state_dir, "tiny", "model") / "v000001.safetensors").unlink()
    fleet.beat(*_queries("a", number, 0))
    fleet.beat()
    assert fleet.kinds() == ["error"] and "cannot be rolled back" in fleet.events[0].message


def test_what_a_deposed_distiller_publishes_late_is_tried_by_nobody(fleet: _Fleet) -> None:
    fleet.beat()
    fleet.publish(fence=2)
    fleet.beat()
    late = fleet.publish(fence=1)
    for _ in range(3):
        assert late not in fleet.beat().values()
    assert fleet.latest() == 2 and "had lost its lease" in fleet.store.load(late)[0].rolled_back
    assert fleet.kinds() == ["refuse"] and fleet.judge.status().roll_backs == 0
    assert fleet.beat()["a"] == 2
    fleet.publish(fence=2)
    by_hand = fleet.publish()  # `osd drafter publish` has no lease and needs none
    fleet.beat()
    assert fleet.latest() == by_hand


def test_before_the_first_report_nothing_can_be_asked_for(tmp_path: Path) -> None:
    judge = VersionJudge(load_config(flags={"state_dir": tmp_path}), list, lambda event: None)
    judge.look()
    assert judge.version_for("a") is None
    with pytest.raises(EngineUnavailableError, match="no engine has reported yet"):
        judge.roll_back(1, "x")


def test_a_quiet_store_is_not_listed_again(fleet: _Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Listing reads every manifest: dear in an object store."""
    fleet.beat()
    fleet.beat()
    monkeypatch.setattr(FileWeightStore, "list", None)
    fleet.beat()
