"""A history store in memory that can be away, and one that loses the answer to a write."""

from __future__ import annotations

from collections.abc import Sequence

from osd.monitor.buckets import Bucket, Tier
from osd.records.errors import OutcomeSinkError
from osd.records.events import Event


class MemoryHistory:
    """Implements `osd.monitor.store.HistoryStore`."""

    def __init__(self) -> None:
        self.buckets: dict[tuple[str, float], Bucket] = {}
        self.stored_events: list[Event] = []
        self.values: dict[str, bytes] = {}
        self.is_away = False
        self.loses_answers = False
        self.id = "first"

    def put(self, buckets: Sequence[tuple[Tier, Bucket]], events: Sequence[Event]) -> str:
        self._check()
        for tier, bucket in buckets:
            self.buckets[tier.name, bucket.at_s] = bucket.merged_with(None)
        self.stored_events += [event for event in events if event not in self.stored_events]
        if self.loses_answers:
            raise OutcomeSinkError("Redis does not answer in time")
        return self.id

    def read(self, tier: Tier, from_s: float, to_s: float) -> list[Bucket]:
        self._check()
        found = [one for (name, at_s), one in self.buckets.items() if name == tier.name and from_s <= at_s <= to_s]
        return sorted(found, key=lambda bucket: bucket.at_s)

    def events(self, from_s: float, to_s: float, limit: int) -> list[Event]:
        self._check()
        return [one for one in self.stored_events if from_s <= one.at_s <= to_s][-limit:]

    def keep(self, name: str, value: bytes) -> None:
        self._check()
        self.values[name] = value

    def kept(self, name: str) -> bytes | None:
        self._check()
        return self.values.get(name)

    def empty(self) -> None:
        """As FLUSHALL does."""
        self.buckets, self.stored_events, self.values, self.id = {}, [], {}, "second"

    def _check(self) -> None:
        if self.is_away:
            raise OutcomeSinkError("Redis at /redis.sock cannot be reached; start it")


class SetClock:
    """A clock that a test sets."""

    def __init__(self, now_s: float) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s
