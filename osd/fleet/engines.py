"""The engines that report, with their latest reports."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from osd.fleet.heartbeat import EngineReport


@dataclass(slots=True)
class _Known:
    report: EngineReport
    heard_s: float
    """By the supervisor's monotonic clock."""


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

    def take(self, report: EngineReport) -> None:
        """Take a report; one that is older than the last of its process changes nothing."""
        known = self._known.get(report.engine_id)
        before = known.report if known is not None and known.report.incarnation == report.incarnation else None
        if before is not None:
            if report.number <= before.number:
                return
            self.outcomes_dropped += report.outcomes_dropped - before.outcomes_dropped
        self._known[report.engine_id] = _Known(report, self._clock())

    def present(self) -> list[EngineReport]:
        """The latest report of every engine that is not away, by engine id; one that fell silent counts as busy."""
        now_s = self._clock()
        self._known = {
            name: known for name, known in self._known.items() if now_s - known.heard_s <= self._away_after_s
        }
        return [
            replace(known.report, utilisation=1.0) if now_s - known.heard_s > self._busy_after_s else known.report
            for _, known in sorted(self._known.items())
        ]
