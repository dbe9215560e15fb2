"""Turns totals that engines report into what was added since their last report."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from osd.monitor.buckets import Figures, Series

Row = tuple[Series, Figures]


_MAX_SERIES = 1024
"""Of one engine, whose process remembers fewer (`osd.meters.served_totals`)."""


@dataclass(slots=True)
class _Known:
    """What is known of an engine's process."""

    process: str
    number: int
    """Of the last report."""
    is_complete: bool
    """Totals of series that are not in `last` have grown from 0 since then."""
    last: dict[Series, Figures] = field(default_factory=dict)
    """Least recently changed first."""


class Totals:
    """The last totals of every engine's process.

    Totals only grow while a process lives, so a report may be lost, or arrive twice or late. An engine forgets series
    that have not changed for longest; one that comes back begins at 0 again.
    """

    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}

    def added(
        self, engine_id: str, process: str, rows: Iterable[Row], *, number: int, is_full: bool = False
    ) -> list[Row]:
        """What a report adds.

        Args:
            engine_id: which engine.
            process: another one after a restart, when totals begin at 0 again.
            rows: totals that changed since the last report.
            number: of the report, counted from 0 in each process; one that is older than the last adds nothing. The
                totals of a process's first report count from 0. Of a process that ran before this object was made,
                totals that were not seen yet only tell where it stands.
            is_full: the report has all totals of the process.
        """
        known = self._known.get(engine_id)
        if known is None or known.process != process:
            known = self._known[engine_id] = _Known(process, number - 1, is_complete=number == 0)
        if number <= known.number:
            return []
        known.number = number
        added = []
        for series, totals in rows:
            before = known.last.pop(series, None)
            known.last[series] = totals
            if before is not None or known.is_complete:
                earlier = before or {}
                if totals.get("rounds", 0.0) < earlier.get("rounds", 0.0):
                    earlier = {}  # it began anew
                more = {name: value - earlier.get(name, 0.0) for name, value in totals.items()}
                added.append((series, {name: value for name, value in more.items() if value > 0.0}))
        while len(known.last) > _MAX_SERIES:
            del known.last[next(iter(known.last))]
        known.is_complete |= is_full
        return [(series, figures) for series, figures in added if figures]

    def forget(self, engine_id: str) -> None:
        """An engine is gone."""
        self._known.pop(engine_id, None)
