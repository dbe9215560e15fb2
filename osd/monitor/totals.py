"""Turns totals that engines report into what was added since their last report."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from osd.monitor.buckets import Figures, Series

Row = tuple[Series, Figures]


@dataclass(slots=True)
class _Known:
    """What is known of an engine's process."""

    process: str
    is_complete: bool
    """Totals of series that are not in `last` have grown from 0 since then."""
    last: dict[Series, Figures] = field(default_factory=dict)


class Totals:
    """The last totals of every engine's process.

    Totals only grow while a process lives, so a report may be lost or arrive twice.
    """

    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}

    def added(
        self, engine_id: str, process: str, rows: Iterable[Row], *, since_start: bool, is_full: bool = False
    ) -> list[Row]:
        """What a report adds.

        Args:
            engine_id: which engine.
            process: another one after a restart, when totals begin at 0 again.
            rows: totals that changed since the last report.
            since_start: the report is the process's first, so that its totals count from 0. Of a process that ran
                before this object was made, totals that were not seen yet only tell where it stands.
            is_full: the report has all totals of the process.
        """
        known = self._known.get(engine_id)
        if known is None or known.process != process:
            known = self._known[engine_id] = _Known(process, is_complete=since_start)
        added = []
        for series, totals in rows:
            before = known.last.get(series)
            known.last[series] = {**(before or {}), **totals}
            if before is not None or known.is_complete:
                more = {name: value - (before or {}).get(name, 0.0) for name, value in totals.items()}
                added.append((series, {name: value for name, value in more.items() if value > 0.0}))
        known.is_complete |= is_full
        return [(series, figures) for series, figures in added if figures]

    def forget(self, engine_id: str) -> None:
        """An engine is gone."""
        self._known.pop(engine_id, None)
