"""The referee's decisions from stated evidence: who tries a version, what it is compared with, what happens then."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pytest

from osd.config.versions import SwapConfig
from osd.fleet.heartbeat import EngineReport, QueryRounds
from osd.fleet.referee import Referee, Standing, num_canaries
from osd.records.drafter_id import DrafterId
from tests.kit.reports import engine_report

_CONFIG = SwapConfig(min_rounds=20, watch_rounds=100)


def _report(
    engine: str, serving: int, rounds: Iterable[QueryRounds] = (), refused: dict[int, str] | None = None
) -> EngineReport:
    return engine_report(engine, drafter=DrafterId("model", serving), rounds=tuple(rounds), refused=refused or {})


def _evidence(version: int, num_queries: int, num_accepted: int, start: int = 0) -> list[QueryRounds]:
    """Queries of ten rounds each, of which so many were accepted."""
    return [QueryRounds(version, f"q{start + number}", 10, num_accepted) for number in range(num_queries)]


class _Service:
    """A referee with engines that obey it."""

    def __init__(self, engines: Sequence[str], config: SwapConfig = _CONFIG) -> None:
        self.referee = Referee(config)
        self.engines = list(engines)
        self.referee.stand(Standing(1, 1))
        self.obey()

    def obey(self) -> None:
        """Every engine serves what it is told to."""
        self.referee.assign([_report(engine, self.referee.version_for(engine) or 0) for engine in self.engines])

    def publish(self, latest: int, confirmed: int = 1) -> None:
        self.referee.stand(Standing(latest, confirmed))
        self.obey()

    def served(self) -> list[int | None]:
        return [self.referee.version_for(engine) for engine in self.engines]

    def observe(self, engine: str, rounds: Iterable[QueryRounds]) -> None:
        self.referee.take(_report(engine, 0, rounds))

    def ruling(self) -> tuple[str, int] | None:
        ruling = self.referee.ruling()
        return (ruling.kind, ruling.version) if ruling else None


@pytest.mark.parametrize(
    ("share", "expected"),
    [(None, [1, 2, 1, 1]), (0.1, [1, 1, 1, 10]), (0.5, [1, 1, 2, 50]), (1.0, [1, 2, 3, 100]), (0.34, [1, 1, 2, 34])],
)
def test_how_many_engines_try_a_version(share: float | None, expected: list[int]) -> None:
    config = SwapConfig(canary_share=share)
    assert [num_canaries(config, num) for num in (1, 2, 3, 100)] == expected


def test_one_of_three_tries_a_version_and_the_others_get_it_once_it_passed() -> None:
    service = _Service("abc")
    assert service.served() == [1, 1, 1]
    service.publish(2)
    assert service.served() == [2, 1, 1] and service.referee.canaries == ["a"]
    for engine in "abc":
        service.observe(engine, _evidence(1, 4, 6))
    service.observe("a", _evidence(2, 9, 6))
    assert service.ruling() is None  # 90 of 100 rounds
    service.observe("a", _evidence(2, 1, 6, start=9))
    assert service.ruling() == ("confirm", 2)
    service.publish(2, confirmed=2)
    assert service.served() == [2, 2, 2] and service.referee.canaries == []


def test_a_worse_version_reaches_nobody_but_the_canary() -> None:
    service = _Service("abc")
    service.publish(2)
    for engine in "bc":
        service.observe(engine, _evidence(1, 5, 8))
    service.observe("a", _evidence(2, 5, 1))
    assert service.ruling() == ("roll_back", 2)
    assert service.served() == [2, 1, 1]
    service.referee.rejected(Standing(1, 1))
    assert service.served() == [1, 1, 1]
    assert service.ruling() is None


def test_the_evidence_of_all_engines_counts_together() -> None:
    """No engine alone has seen enough of either version."""
    service = _Service("abcdef", SwapConfig(min_rounds=20, watch_rounds=100, canary_share=0.5))
    service.publish(2)
    assert service.served() == [2, 2, 2, 1, 1, 1]
    for engine in "def":
        service.observe(engine, _evidence(1, 1, 9))
    for number, engine in enumerate("abc"):
        assert service.ruling() is None, number
        service.observe(engine, _evidence(2, 1, 0))
    assert service.ruling() == ("roll_back", 2)


def test_equal_names_of_queries_on_two_engines_are_two_queries() -> None:
    service = _Service("abc")
    service.publish(2)
    service.observe("b", _evidence(1, 2, 9))
    service.observe("c", _evidence(1, 2, 9))
    service.observe("a", _evidence(2, 4, 0))
    assert service.referee.figures()["rounds_before"] == 40


def test_a_report_that_comes_twice_counts_once() -> None:
    service = _Service("abc")
    service.publish(2)
    for _ in range(3):
        service.observe("a", _evidence(2, 4, 5))
    assert service.referee.figures()["rounds_after"] == 40


def test_without_rounds_of_the_version_before_the_others_are_waited_for() -> None:
    service = _Service("abc")
    service.publish(2)
    service.observe("a", _evidence(2, 12, 0))
    assert service.ruling() is None
    service.observe("b", _evidence(1, 4, 9))
    assert service.ruling() == ("roll_back", 2)


def test_where_nobody_serves_the_version_before_and_nothing_is_known_of_it_there_is_nothing_to_compare() -> None:
    service = _Service("a")
    service.publish(2)
    assert service.ruling() == ("confirm", 2)


def test_nothing_is_ruled_before_a_canary_serves_the_version() -> None:
    """After a restart, the supervisor knows the store before it hears of any engine."""
    service = _Service([])
    service.publish(2)
    assert service.ruling() is None
    service.engines = ["a"]
    service.referee.assign([_report("a", 1)])
    assert service.ruling() is None
    service.obey()
    assert service.ruling() == ("confirm", 2)


def test_two_engines_try_a_version_together_and_are_compared_with_before() -> None:
    service = _Service("ab")
    service.observe("a", _evidence(1, 5, 8))
    service.observe("b", _evidence(1, 5, 8))
    service.publish(2)
    assert service.served() == [2, 2]
    service.observe("a", _evidence(2, 2, 0))
    assert service.ruling() is None
    service.observe("b", _evidence(2, 2, 0))
    assert service.ruling() == ("roll_back", 2)


def test_a_newer_version_waits_for_the_trial_of_canaries_to_end() -> None:
    service = _Service("abc")
    service.publish(2)
    service.publish(3)
    assert service.served() == [2, 1, 1]
    service.observe("b", _evidence(1, 5, 8))
    service.observe("a", _evidence(2, 5, 0))
    assert service.ruling() == ("roll_back", 2)
    service.referee.rejected(Standing(3, 1))
    assert service.served() == [3, 1, 1]


def test_a_newer_version_replaces_the_one_on_trial_where_all_engines_try_it() -> None:
    service = _Service("a")
    service.observe("a", _evidence(1, 5, 8))
    service.publish(2)
    service.observe("a", _evidence(2, 5, 7))
    service.publish(3)
    assert service.served() == [3]
    assert service.referee.figures()["before"] == 0.7  # enough is known of version 2
    service.publish(4)  # nothing is known of version 3
    assert service.referee.figures()["before"] == 0.7


def test_a_late_engine_starts_with_the_confirmed_version() -> None:
    service = _Service("abc")
    service.publish(2)
    service.engines.append("0")  # the first in order
    service.obey()
    assert service.served() == [2, 1, 1, 1]


def test_when_the_canary_dies_another_engine_tries_the_version() -> None:
    service = _Service("abc")
    service.publish(2)
    service.engines.remove("a")
    service.obey()
    assert service.served() == [2, 2]  # two engines are left: both
    service.engines += ["d", "e"]
    service.obey()
    assert service.served() == [2, 2, 1, 1]


def test_a_restarted_supervisor_finds_its_canaries_and_their_evidence() -> None:
    restarted = Referee(_CONFIG)
    restarted.stand(Standing(2, 1))
    restarted.take(_report("c", 2, _evidence(2, 5, 0)))
    restarted.take(_report("a", 1, _evidence(1, 5, 9)))
    restarted.assign([_report("a", 1), _report("b", 1), _report("c", 2)])
    assert restarted.canaries == ["c"]
    ruling = restarted.ruling()
    assert ruling is not None and ruling.kind == "roll_back"
    assert ruling.reason == "first-token acceptance fell from 0.90 to 0.00 after the swap"


def test_a_version_that_an_engine_refuses_is_not_given_to_others() -> None:
    service = _Service("abc")
    service.publish(2)
    service.referee.take(_report("a", 1, refused={2: "torn"}))
    assert service.ruling() == ("refuse", 2)
    assert service.referee.refusal(2) == "engine a: torn"


def test_a_pinned_version_serves_whatever_is_published() -> None:
    service = _Service("abc")
    service.publish(2)
    service.referee.stand(Standing(2, 1, is_pinned=True))
    assert service.served() == [1, 1, 1] and service.referee.trial is None
    service.referee.stand(Standing(3, 1, is_pinned=True))
    assert service.served() == [1, 1, 1]
    service.referee.stand(Standing(3, 1))
    assert service.served() == [3, 1, 1]


def test_a_roll_back_by_hand_ends_the_trial() -> None:
    service = _Service("abc")
    service.publish(3)
    service.publish(1)
    assert service.served() == [1, 1, 1] and service.referee.trial is None
