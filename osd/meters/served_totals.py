"""Totals of rounds and queries for the operator's history, by domain and drafter version."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from osd.monitor.buckets import Figures, Series
from osd.monitor.labels import Domains

_MAX_DOMAINS = 64
"""Clients choose the labels; further ones are counted together."""
_MAX_SERIES = 512
"""Each drafter version makes one for each domain; those that have not changed for longest are forgotten."""


class _Totals:
    """Totals of one domain and drafter version. Every measure of acceptance follows from the counts of `rounds`."""

    __slots__ = ("committed", "decode_ms", "output_tokens", "plain_ms", "queries", "rounds")

    def __init__(self) -> None:
        self.rounds: Counter[tuple[int, int]] = Counter()
        """(proposed, accepted) to the number of such rounds."""
        self.committed = self.queries = self.output_tokens = 0
        self.decode_ms = self.plain_ms = 0.0

    def figures(self) -> Figures:
        """The totals by the names in `osd.monitor.buckets`."""
        figures: Counter[str] = Counter()
        for (proposed, accepted), num_rounds in self.rounds.items():
            figures["rounds"] += num_rounds
            figures["proposed"] += num_rounds * proposed
            figures["accepted"] += num_rounds * accepted
            figures[f"length_{proposed}"] += num_rounds
            if proposed == 0:
                figures["plain_rounds"] += num_rounds
            for position in range(1, proposed + 1):
                figures[f"proposed_at_{position}"] += num_rounds
            for position in range(1, accepted + 1):
                figures[f"accepted_at_{position}"] += num_rounds
        counted = {name: float(value) for name, value in figures.items()}
        own = {name: float(getattr(self, name)) for name in self.__slots__ if name != "rounds"}
        return {**counted, **{name: value for name, value in own.items() if value}}


class ServedTotals:
    """Counts on the engine's thread. Totals only grow; a series that was forgotten begins at 0 if it comes back."""

    def __init__(self, *, max_series: int = _MAX_SERIES, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_series = max_series
        self._totals: dict[Series, _Totals] = {}
        """Least recently changed first, as of the last `take`."""
        self._domains = Domains(_MAX_DOMAINS, on_forgotten=self._forget, clock=clock)
        self._changed: set[Series] = set()

    def add_round(
        self,
        series: Series,
        *,
        proposed: int,
        accepted: int,
        committed: int,
        took_ms: float,
        plain_ms: float,
    ) -> None:
        """Count one row's round.

        Args:
            series: the query's domain and the drafter version that proposed; none for a plain round.
            proposed: tokens proposed.
            accepted: of them, tokens accepted.
            committed: tokens added to the answer.
            took_ms: the row's share of the pass.
            plain_ms: what plain decoding would have taken for the committed tokens.
        """
        totals = self._of(series)
        totals.rounds[proposed, accepted] += 1
        totals.committed += committed
        totals.decode_ms += took_ms
        totals.plain_ms += plain_ms

    def add_query(self, domain: str, output_tokens: int) -> None:
        """Count one finished query."""
        totals = self._of(Series(domain))
        totals.queries += 1
        totals.output_tokens += output_tokens

    def take(self, *, everything: bool) -> tuple[tuple[Series, Figures], ...]:
        """The totals of series that changed since the last call, or of all."""
        for series in self._changed:
            self._domains.label(series.domain)
            self._totals[series] = self._totals.pop(series)
        taken = tuple(
            (series, self._totals[series].figures()) for series in (self._totals if everything else self._changed)
        )
        self._changed = set()
        return taken

    def totals(self) -> list[tuple[Series, Figures]]:
        """The totals of every series."""
        return [(series, totals.figures()) for series, totals in self._totals.items()]

    def _of(self, series: Series) -> _Totals:
        totals = self._totals.get(series)
        if totals is None:
            series = Series(self._domains.label(series.domain), series.drafter, series.version)
            if series not in self._totals and len(self._totals) >= self._max_series:
                self._drop(next(iter(self._totals)))
            totals = self._totals.setdefault(series, _Totals())
        self._changed.add(series)
        return totals

    def _forget(self, domain: str) -> None:
        for series in [one for one in self._totals if one.domain == domain]:
            self._drop(series)

    def _drop(self, series: Series) -> None:
        del self._totals[series]
        self._changed.discard(series)
