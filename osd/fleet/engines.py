"""The engines that report, with their latest reports."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from osd.fleet.heartbeat import AcceptanceCount, EngineReport
from osd.records.drafter_id import DrafterId


@dataclass(slots=True)
class _Known:
    report: EngineReport
    heard_s: float
    """By the supervisor's monotonic clock."""
    counts: dict[tuple[str, DrafterId], AcceptanceCount]
    is_complete: bool
    """`counts` hold everything that the engine has counted."""


class Engines:
    """Knows an engine from its first report until its reports stop.

    Args:
        busy_after_s: silence after which an engine counts as busy: it may be in a long step.
        away_after_s: silence after which an engine counts as away.
        clock: monotonic seconds.
    """

    def __init__(
        self, *, busy_after_s: float = 4.0, away_after_s: float = 15.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._busy_after_s, self._away_after_s, self._clock = busy_after_s, away_after_s, clock
        self._known: dict[str, _Known] = {}
        self.outcomes_dropped = 0
        """By all engines, since this object was made."""

    def take(self, report: EngineReport) -> list[AcceptanceCount]:
        """Take a report; one that is older than the last of its process changes nothing.

        Returns:
            What was proposed and accepted since the engine's last report. Of an engine that was running before this
            object was made, the first full report only says where its counts stand, and nothing is returned.
        """
        before = self._known.get(report.engine_id)
        if before is None or before.report.incarnation != report.incarnation:
            before = _Known(report, 0.0, {}, is_complete=report.number == 0)
        elif report.number <= before.report.number:
            return []
        self.outcomes_dropped += report.outcomes_dropped - before.report.outcomes_dropped
        counts = before.counts
        added = [_difference(count, counts.get((count.domain, count.drafter))) for count in report.acceptance]
        counts.update({(count.domain, count.drafter): count for count in report.acceptance})
        self._known[report.engine_id] = _Known(report, self._clock(), counts, before.is_complete or report.is_full)
        return [count for count in added if count.rounds] if before.is_complete else []

    def present(self) -> list[EngineReport]:
        """The latest report of every engine that is not away, by engine id; silent ones are said to be busy."""
        now_s = self._clock()
        self._known = {
            name: known for name, known in self._known.items() if now_s - known.heard_s <= self._away_after_s
        }
        return [
            replace(known.report, utilisation=1.0) if now_s - known.heard_s > self._busy_after_s else known.report
            for _, known in sorted(self._known.items())
        ]


def _difference(count: AcceptanceCount, before: AcceptanceCount | None) -> AcceptanceCount:
    if before is None:
        return count
    return count._replace(
        rounds=count.rounds - before.rounds,
        proposed=count.proposed - before.proposed,
        accepted=count.accepted - before.accepted,
        committed=count.committed - before.committed,
    )
