"""Where the operator's history is kept. `osd/io/history_store.py` implements it over Redis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from osd.monitor.buckets import Bucket, Tier
from osd.records.events import Event


class HistoryStore(Protocol):
    """Keeps buckets and events, each within bounds. Every method raises OutcomeSinkError while it is away."""

    def put(self, buckets: Sequence[tuple[Tier, Bucket]], events: Sequence[Event]) -> str:
        """Store buckets (in place of one that begins at the same time) and events, all or nothing.

        Returns:
            An id of the stored history, which is another one after all was deleted.
        """
        ...

    def read(self, tier: Tier, from_s: float, to_s: float) -> list[Bucket]:
        """Buckets that begin in [from_s, to_s], oldest first."""
        ...

    def events(self, from_s: float, to_s: float, limit: int) -> list[Event]:
        """The newest events in [from_s, to_s], oldest first."""
        ...

    def keep(self, name: str, value: bytes) -> None:
        """Store a value under a name, in place of an earlier one."""
        ...

    def kept(self, name: str) -> bytes | None:
        """The value under a name; None if there is none."""
        ...
