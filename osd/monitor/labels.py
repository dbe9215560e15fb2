"""Keeps the number of domains bounded, wherever they are labels: in the history and in metrics."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

OTHER = "other"
_FREE_AFTER_S = 2 * 86_400.0


class Domains:
    """At most so many domains keep their names; further ones are called `other`, since clients may send any.

    A domain without queries for two days gives its place to one that has some, when there is no free place.

    Args:
        most: how many keep their names.
        known: domains that were seen before, so that they keep their names after a restart.
        on_forgotten: called with a domain that gave up its place.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        most: int,
        known: Iterable[str] = (),
        *,
        on_forgotten: Callable[[str], None] = lambda domain: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most, self._on_forgotten, self._clock = most, on_forgotten, clock
        self._seen_s: dict[str, float] = {}
        """Domain to when it was last active, least recent first."""
        for name in known:
            self.label(name)

    def label(self, domain: str, *, is_active: bool = True) -> str:
        """The label of a domain.

        Args:
            domain: its name; empty: none, and `other`, those that were put together before: their own labels.
            is_active: it has queries now, rather than figures from before.
        """
        if domain in ("", OTHER):
            return domain
        if domain in self._seen_s:
            if is_active:
                self._seen_s.pop(domain)
                self._seen_s[domain] = self._clock()
            return domain
        if not self._has_place(may_take=is_active):
            return OTHER
        self._seen_s[domain] = self._clock()
        return domain

    def _has_place(self, *, may_take: bool) -> bool:
        """Whether there is a place for one more; `may_take`: that of a domain that has long had no queries counts."""
        if len(self._seen_s) < self._most:
            return True
        oldest = next(iter(self._seen_s), None)
        if not may_take or oldest is None or self._clock() - self._seen_s[oldest] < _FREE_AFTER_S:
            return False
        del self._seen_s[oldest]
        self._on_forgotten(oldest)
        return True
