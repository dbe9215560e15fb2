"""Turns totals that engines report into what was added since their last report."""

from __future__ import annotations

from collections.abc import Iterable

from osd.monitor.buckets import Figures, Series

Row = tuple[Series, Figures]


class Totals:
    """The last totals of every engine's process.

    Totals only grow while a process lives, so a report may be lost or arrive twice.
    """

    def __init__(self) -> None:
        self._last: dict[str, tuple[str, dict[Series, Figures]]] = {}

    def added(self, engine_id: str, process: str, rows: Iterable[Row], *, since_start: bool) -> list[Row]:
        """What a report adds.

        Args:
            engine_id: which engine.
            process: another one after a restart, when totals begin at 0 again.
            rows: totals that changed since the last report.
            since_start: the report is the process's first, so that its totals count from 0. Without it, an unknown
                process's totals only tell where it stands.
        """
        known, last = self._last.get(engine_id, ("", {}))
        is_known = known == process
        if not is_known:
            last = {}
            self._last[engine_id] = (process, last)
        added = []
        for series, totals in rows:
            before = last.get(series, {})
            last[series] = {**before, **totals}
            if is_known or since_start:
                more = {name: value - before.get(name, 0.0) for name, value in totals.items()}
                added.append((series, {name: value for name, value in more.items() if value > 0.0}))
        return [(series, figures) for series, figures in added if figures]

    def forget(self, engine_id: str) -> None:
        """An engine is gone."""
        self._last.pop(engine_id, None)
