"""An engine reports, obeys, and goes on by itself while nobody answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from actors.engine.reporter import Reporter
from osd.fleet.heartbeat import EngineOrders, EngineReport
from tests.kit.reports import engine_report
from tests.kit.waiting import wait_for


class _Supervisor:
    """Answers with its session and a version, unless it is away or hangs."""

    def __init__(self) -> None:
        self.session, self.version, self.is_away = "one", 1, False
        self.reports: list[EngineReport] = []

    def ask(self, actor: str, method: str, *args: Any, timeout_s: float) -> EngineOrders:
        assert (actor, method) == ("supervisor", "report")
        if self.is_away:
            raise ConnectionError("nobody there")
        self.reports.append(args[0])
        return EngineOrders(session=self.session, version=self.version)


@pytest.fixture
def supervisor() -> _Supervisor:
    return _Supervisor()


@pytest.fixture
def obeyed() -> list[EngineOrders]:
    return []


@pytest.fixture
def reporter(supervisor: _Supervisor, obeyed: list[EngineOrders]) -> Iterator[Reporter]:
    def make(is_full: bool) -> EngineReport:
        return engine_report(is_full=is_full)

    reporter = Reporter(supervisor.ask, "supervisor", make, obeyed.append, interval_s=0.001)
    yield reporter
    reporter.close()


@pytest.mark.usefixtures("reporter")
def test_only_the_first_report_is_full_until_the_supervisor_is_another(supervisor: _Supervisor) -> None:
    wait_for(lambda: len(supervisor.reports) >= 4, "reports")
    assert [report.is_full for report in supervisor.reports[:4]] == [True, False, False, False]
    num_before = len(supervisor.reports)
    supervisor.session = "two"
    wait_for(lambda: any(report.is_full for report in supervisor.reports[num_before:]), "a full report")
    num_before = len(supervisor.reports)
    wait_for(lambda: len(supervisor.reports) >= num_before + 3, "more reports")
    assert not any(report.is_full for report in supervisor.reports[num_before:])


def test_while_nobody_answers_nothing_is_ordered_and_then_everything_is_told(
    supervisor: _Supervisor, obeyed: list[EngineOrders]
) -> None:
    made = []

    def make(is_full: bool) -> EngineReport:
        made.append(is_full)
        return engine_report(is_full=is_full)

    supervisor.is_away = True
    reporter = Reporter(supervisor.ask, "supervisor", make, obeyed.append, interval_s=0.001)
    try:
        wait_for(lambda: len(made) >= 2, "two reports that nobody took")
        assert obeyed == []
        supervisor.is_away = False
        wait_for(lambda: supervisor.reports, "a report that is taken")
        assert supervisor.reports[0].is_full
    finally:
        reporter.close()
