"""Writes the operator's history, and reads it, also while the store is away.

`add` counts in memory; `flush` adds what was counted to the store. While the store is away it stays in memory, and is
written when the store is back; the outage becomes an event of the kind `gap`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from osd.monitor.answer import answer, checked, tier_of
from osd.monitor.buckets import TIERS, Bucket, Figures, HistoryAnswer, HistoryQuery, Series, Tier
from osd.monitor.labels import Domains
from osd.monitor.store import HistoryStore
from osd.monitor.waiting import Place, WaitingBuckets
from osd.records.errors import OutcomeSinkError
from osd.records.events import Event

_log = logging.getLogger(__name__)
_MOST_EVENTS = 2000
_DOMAINS_OF_S = 2 * 86_400


class Found(NamedTuple):
    """What a range of the history holds."""

    buckets: list[Bucket]
    """Several may begin at the same time: what is stored, and what was counted since."""
    events: list[Event]
    message: str
    """What the reader has to know; empty if all is well."""


class History:
    """The history of one service; it has one writer. Any thread may call any method.

    Args:
        store: where it is kept; None: in memory only.
        max_domains: domains that keep their names; the others are `other`.
        clock_s: wall clock.
    """

    def __init__(
        self, store: HistoryStore | None, *, max_domains: int = 20, clock_s: Callable[[], float] = time.time
    ) -> None:
        self._store, self._clock_s = store, clock_s
        self._lock = threading.Lock()
        """Held for short moments: adding never waits for the store."""
        self._using_store = threading.Lock()
        """Held by who writes or reads the store, so that a reader finds a figure there or in memory, never in both."""
        self._waiting, self._new_events = WaitingBuckets(), deque[Event](maxlen=_MOST_EVENTS)
        self._recent, self._recent_events = WaitingBuckets(), deque[Event](maxlen=_MOST_EVENTS)
        """The newest figures and events, stored or not: for readers while the store is away, and for a store that was
        emptied."""
        self._bases: dict[Place, Bucket] = {}
        """What the store has of buckets that are still added to. Kept when a write fails, of which nobody knows whether
        it came through: the next one then writes the same sum."""
        self._domains = Domains(max_domains)
        self._knows_domains = False
        self._id: str | None = None
        self._away_since_s: float | None = None

    def add(self, series: Series, figures: Figures) -> None:
        """Add figures to a series, in the buckets of the present moment."""
        now_s = self._clock_s()
        with self._lock:
            series = Series(self._domains.label(series.domain), series.drafter, series.version, series.engine)
            self._waiting.add(now_s, series, figures)
            self._recent.add(now_s, series, figures)

    def mark(self, event: Event) -> None:
        """Keep an event."""
        with self._lock:
            self._new_events.append(event)
            self._recent_events.append(event)

    def flush(self) -> bool:
        """Write what waits to the store; returns whether that worked. Never raises OutcomeSinkError."""
        if self._store is None:
            return False
        with self._using_store:
            try:
                self._flush(self._store)
            except OutcomeSinkError as error:
                if self._away_since_s is None:
                    _log.warning("the history is kept in memory: %s", error)
                    self._away_since_s = self._clock_s()
                return False
        if self._away_since_s is not None:
            self._mark_outage(self._away_since_s)
            self._away_since_s = None
        return True

    def read(self, query: HistoryQuery, max_events: int = _MOST_EVENTS) -> HistoryAnswer:
        """Read a range; what is not stored yet is included.

        Raises:
            BadRangeError: the range makes no sense.
        """
        tier = tier_of(checked(query), self._clock_s())
        found = self.buckets(tier, query.from_s, query.to_s, max_events)
        return replace(answer(query, tier, found.buckets, found.events), message=found.message)

    def buckets(self, tier: Tier, from_s: float, to_s: float, max_events: int = _MOST_EVENTS) -> Found:
        """A tier's buckets and the events in a range; what is not stored yet is included."""
        first_s = tier.start_of(from_s)
        with self._using_store:
            stored, events, message = self._stored(tier, first_s, from_s, to_s, max_events)
            with self._lock:
                in_memory, newer = (self._recent, self._recent_events) if message else (self._waiting, self._new_events)
                stored += in_memory.within(tier, first_s, to_s)
                events += [one for one in newer if from_s <= one.at_s <= to_s]
        return Found(stored, sorted(events, key=lambda event: event.at_s)[-max_events:], message)

    def events(self, from_s: float, to_s: float, limit: int) -> list[Event]:
        """The newest events in a range, oldest first."""
        with self._using_store:
            try:
                found = self._store.events(from_s, to_s, limit) if self._store else []
                newer = self._new_events if self._store else self._recent_events
            except OutcomeSinkError:
                found, newer = [], self._recent_events
            with self._lock:
                found += [one for one in newer if from_s <= one.at_s <= to_s]
        return sorted(found, key=lambda event: event.at_s)[-limit:]

    def _stored(
        self, tier: Tier, first_s: float, from_s: float, to_s: float, max_events: int
    ) -> tuple[list[Bucket], list[Event], str]:
        """(buckets, events, why there are none)."""
        if self._store is None:
            return [], [], "The history is kept in memory only, and ends with this process: there is no Redis."
        try:
            return self._store.read(tier, first_s, to_s), self._store.events(from_s, to_s, max_events), ""
        except OutcomeSinkError as error:
            return [], [], f"{error}. Until then only what is in memory is shown; what is stored is not lost."

    def _flush(self, store: HistoryStore) -> None:
        if not self._knows_domains:
            self._learn_domains(store)
        with self._lock:
            taken, self._waiting = self._waiting, WaitingBuckets()
            events = list(self._new_events)
            self._new_events.clear()
        try:
            written = {place: self._base(store, place).merged_with(added) for place, added in taken.items()}
            history_id = store.put([(tier, bucket) for (tier, _), bucket in written.items()], events)
        except OutcomeSinkError:
            with self._lock:
                newer, self._waiting = self._waiting, taken
                for (tier, _), bucket in newer.items():
                    self._waiting.merge(tier, bucket)
                self._new_events.extendleft(reversed(events[: _MOST_EVENTS - len(self._new_events)]))
            raise
        self._keep_bases(written)
        if self._id not in (None, history_id):
            self._restore(written)
        self._id = history_id

    def _base(self, store: HistoryStore, place: Place) -> Bucket:
        """What the store has of a bucket."""
        if place not in self._bases:
            tier, at_s = place
            stored = store.read(tier, at_s, at_s)
            self._bases[place] = stored[0] if stored else Bucket(at_s, {})
        return self._bases[place]

    def _keep_bases(self, written: dict[Place, Bucket]) -> None:
        """Of what was written keep each tier's newest bucket, to which more will be added."""
        self._bases.update(written)
        newest = {tier: max((at_s for one, at_s in self._bases if one is tier), default=0.0) for tier in TIERS}
        self._bases = {(tier, at_s): one for (tier, at_s), one in self._bases.items() if at_s == newest[tier]}

    def _learn_domains(self, store: HistoryStore) -> None:
        """Domains of the last days keep their names after a restart."""
        now_s = self._clock_s()
        rows = [series for bucket in store.read(TIERS[-1], now_s - _DOMAINS_OF_S, now_s) for series in bucket.rows]
        with self._lock:
            for series in rows:
                self._domains.label(series.domain)
        self._knows_domains = True

    def _mark_outage(self, since_s: float) -> None:
        now_s = self._clock_s()
        message = f"the history's Redis was away for {now_s - since_s:.0f} s; what was counted meanwhile is in it now"
        self.mark(Event(at_s=since_s, kind="gap", message=message, data={"from_s": since_s, "to_s": now_s}))

    def _restore(self, written: dict[Place, Bucket]) -> None:
        """After somebody emptied the store: let the next flush write again what is in memory."""
        now_s = self._clock_s()
        with self._lock:
            for place, bucket in self._recent.items():
                if place not in written:
                    self._bases[place] = Bucket(bucket.at_s, {})
                    self._waiting.merge(place[0], bucket)
            self._new_events = deque(self._recent_events, maxlen=_MOST_EVENTS)
        message = (
            "the history's Redis was emptied; what this process remembers is written again, older figures are lost"
        )
        self.mark(Event(at_s=now_s, kind="gap", message=message, data={"from_s": now_s, "to_s": now_s}))
