"""Counts of proposals by domain and drafter version, for a bounded number of domains."""

from __future__ import annotations

from osd.fleet.heartbeat import AcceptanceCount
from osd.records.drafter_id import DrafterId

MAX_DOMAINS = 64
OTHER_DOMAINS = "(other)"
"""Label under which further domains are counted; clients choose labels, so their number has to be bounded."""


class DomainCounts:
    """What each drafter version proposed in each domain; counts only grow."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, DrafterId], AcceptanceCount] = {}
        self._domains: set[str] = set()
        self._changed: set[tuple[str, DrafterId]] = set()

    def add(self, domain: str, drafter: DrafterId, proposed: int, accepted: int, committed: int) -> None:
        """Count one row's round in which at least one token was proposed."""
        if domain not in self._domains:
            if len(self._domains) < MAX_DOMAINS:
                self._domains.add(domain)
            else:
                domain = OTHER_DOMAINS
        key = (domain, drafter)
        _, _, *before = self._counts.get(key, (domain, drafter, 0, 0, 0, 0))
        self._counts[key] = AcceptanceCount(
            domain, drafter, before[0] + 1, before[1] + proposed, before[2] + accepted, before[3] + committed
        )
        self._changed.add(key)

    def take(self, *, everything: bool) -> tuple[AcceptanceCount, ...]:
        """The counts that changed since the last call, or all of them."""
        keys = list(self._counts) if everything else self._changed
        taken = tuple(self._counts[key] for key in keys)
        self._changed = set()
        return taken
