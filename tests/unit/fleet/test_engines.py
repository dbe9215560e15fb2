"""What the engines' reports add up to, whatever is lost, repeated or restarted."""

from __future__ import annotations

import pytest

from osd.fleet.engines import Engines
from tests.kit.clock import Clock
from tests.kit.reports import engine_report


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def engines(clock: Clock) -> Engines:
    return Engines(away_after_s=10.0, clock=clock)


def test_a_report_that_arrives_late_or_twice_changes_nothing(engines: Engines) -> None:
    engines.take(engine_report(number=2, running=5))  # number 1 was lost
    engines.take(engine_report(number=1, running=9))
    engines.take(engine_report(number=2, running=9))
    assert [report.running for report in engines.present()] == [5]
    engines.take(engine_report(number=0, incarnation="second", running=1))
    assert [report.running for report in engines.present()] == [1], "a restarted engine counts its reports from zero"


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
