"""Counts how often a drafter's first proposed token is accepted, by version and query: evidence for the referee."""

from __future__ import annotations

from collections.abc import Iterable

from osd.fleet.first_token_window import FirstTokenWindow
from osd.fleet.heartbeat import QueryRounds

_MAX_VERSIONS = 3
"""Versions whose rounds are remembered: a restarted referee is told of them again."""


class SwapWatch:
    """The newest rounds of a drafter's last versions.

    Args:
        num_rounds: number of rounds kept of each version.
    """

    def __init__(self, num_rounds: int) -> None:
        self._num_rounds = num_rounds
        self._windows: dict[int, FirstTokenWindow] = {}
        self._changed: set[tuple[int, str]] = set()
        self._domains: dict[str, str] = {}
        """Query to domain, of the queries in the windows."""
        self.is_judged = False
        """The referee is comparing versions, so rounds of the serving one are wanted."""

    def wants_rounds(self, version: int, queries: Iterable[str]) -> bool:
        """Whether rounds of these queries would help a pending comparison, so that they must not be plain."""
        if not self.is_judged:
            return False
        window = self._window(version)
        return any(window.takes(query) for query in queries)

    def observe(self, version: int, query: str, first_accepted: bool, domain: str = "") -> None:
        """Add one row's round with at least one proposed token."""
        window = self._window(version)
        if window.takes(query):
            window.add(query, first_accepted)
            self._changed.add((version, query))
            self._domains[query] = domain
            if len(self._domains) > _MAX_VERSIONS * self._num_rounds:
                self._forget_old_queries()

    def take(self, *, everything: bool) -> tuple[QueryRounds, ...]:
        """What changed since the last call, or all that is remembered, oldest query first."""
        self._forget_old_queries()
        changed, self._changed = self._changed, set()
        return tuple(
            QueryRounds(version, query, *counts, self._domains[query])
            for version, window in self._windows.items()
            for query, counts in window.counts().items()
            if everything or (version, query) in changed
        )

    def _forget_old_queries(self) -> None:
        """Let go of queries that have left the windows, which may happen before anybody took what changed."""
        known = {(version, query) for version, window in self._windows.items() for query in window.counts()}
        self._changed &= known
        self._domains = {query: self._domains[query] for _, query in known}

    def _window(self, version: int) -> FirstTokenWindow:
        if version not in self._windows:
            self._windows[version] = FirstTokenWindow(self._num_rounds)
            while len(self._windows) > _MAX_VERSIONS:
                del self._windows[next(iter(self._windows))]
        return self._windows[version]
