"""What the engines' reports add up to, whatever is lost, repeated or restarted."""

from __future__ import annotations

import pytest

from osd.fleet.engines import Engines
from osd.fleet.heartbeat import AcceptanceCount
from osd.records.drafter_id import DrafterId
from tests.kit.clock import Clock
from tests.kit.reports import engine_report

_V1 = DrafterId("model", 1)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def engines(clock: Clock) -> Engines:
    return Engines(away_after_s=10.0, clock=clock)


def _count(rounds: int, domain: str = "x") -> AcceptanceCount:
    return AcceptanceCount(domain, _V1, rounds, 3 * rounds, 2 * rounds, 3 * rounds)


def test_differences_are_told_whatever_is_lost_or_repeated(engines: Engines) -> None:
    assert engines.take(engine_report(acceptance=(_count(5),))) == [_count(5)]
    second = engine_report(number=2, is_full=False, acceptance=(_count(12), _count(1, "y")))  # number 1 was lost
    assert engines.take(second) == [_count(7), _count(1, "y")]
    assert engines.take(second) == []
    assert engines.take(engine_report(number=1, acceptance=(_count(9),))) == []
    assert engines.take(engine_report(number=3, acceptance=(_count(12), _count(2, "y")))) == [_count(1, "y")]


def test_a_restarted_engine_counts_from_zero(engines: Engines) -> None:
    engines.take(engine_report(number=7, acceptance=(_count(50),)))
    assert engines.take(engine_report(incarnation="second", acceptance=(_count(3),))) == [_count(3)]


def test_of_engines_that_ran_before_nothing_is_counted_again(engines: Engines) -> None:
    """The supervisor was restarted: a report of changes comes first, then one of everything."""
    assert engines.take(engine_report(number=40, is_full=False, acceptance=(_count(50),))) == []
    assert engines.take(engine_report(number=41, acceptance=(_count(52), _count(9, "y")))) == []
    assert engines.take(engine_report(number=42, is_full=False, acceptance=(_count(10, "y"),))) == [_count(1, "y")]


def test_lost_outcomes_are_counted_over_restarts(engines: Engines) -> None:
    engines.take(engine_report(outcomes_dropped=5, number=3))  # before this supervisor
    engines.take(engine_report(outcomes_dropped=7, number=4))
    engines.take(engine_report(outcomes_dropped=7, number=4))
    engines.take(engine_report(outcomes_dropped=1, incarnation="second"))
    engines.take(engine_report(outcomes_dropped=2, number=1, incarnation="second"))
    assert engines.outcomes_dropped == 3


def test_an_engine_whose_reports_stop_is_away(engines: Engines, clock: Clock) -> None:
    engines.take(engine_report("b"))
    clock.now_s = 6.0
    engines.take(engine_report("a"))
    assert [(report.engine_id, report.utilisation) for report in engines.present()] == [("a", 0.0), ("b", 1.0)]
    clock.now_s = 11.0
    assert [report.engine_id for report in engines.present()] == ["a"]
