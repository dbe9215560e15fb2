"""Compares a new drafter version's acceptance with that of the version before the swap.

The measure is the share of rounds whose *first* proposed token was accepted. Unlike accepted / proposed it does not
depend on the speculation length, which the policy adapts to acceptance. The decision is a two-proportion z-test on the
newest rounds of both versions. So that one hard query after the swap does not decide, several queries are needed, and
correlated rounds of one query count less.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import sqrt

from osd.config.settings import SwapConfig
from osd.records.acceptance_figures import Verdict
from osd.speculation.first_token_window import FirstTokenWindow

_MIN_QUERIES = 3
_LEAST_CORRELATION = 0.1
"""Lower bound for the correlation of rounds of one query, since a few queries may look more alike than they are."""


class SwapWatch:
    """First-token acceptance of the serving version, and of the one before."""

    def __init__(self, config: SwapConfig) -> None:
        self.config = config
        self._before: FirstTokenWindow | None = None
        self._after = FirstTokenWindow(config.watch_rounds)
        self._correlation = _LEAST_CORRELATION
        self._watching = False
        self._verdict: Verdict = "sound"

    def swapped(self, *, watch: bool) -> None:
        """Another version serves from now on; `watch` is False after a roll back, which is not compared again."""
        # After a roll back, the serving version is the one that `_before` describes.
        if watch and self._is_known:
            self._before = self._after
            # The version before has many rounds, so the correlation is estimated from them.
            self._correlation = max(self._before.correlation(), _LEAST_CORRELATION)
        self._after = FirstTokenWindow(self.config.watch_rounds)
        self._watching = watch and self._before is not None
        self._verdict = "undecided" if self._watching else "sound"

    def wants_rounds(self, queries: Iterable[str]) -> bool:
        """Whether rounds of these queries would help a pending comparison, so that they must not be plain."""
        return self._watching and any(self._after.takes(query) for query in queries)

    def observe(self, query: str, first_accepted: bool) -> None:
        """Add one row's round with at least one proposed token. Ignored once the version was found worse."""
        if self._verdict != "worse" and self._after.takes(query):
            self._after.add(query, first_accepted)

    def verdict(self) -> Verdict:
        """Call this after every round. Decides once there are enough rounds; "sound" after `watch_rounds`."""
        if self._watching and self._is_known:
            if self.fall_z() > self.config.roll_back_z:
                self._verdict = "worse"
            elif len(self._after) == self.config.watch_rounds:
                self._verdict = "sound"
            self._watching = self._verdict == "undecided"
        return self._verdict

    def rates(self) -> tuple[float, float]:
        """First-token acceptance (before, after) the swap."""
        return 0.0 if self._before is None else self._before.rate, self._after.rate

    def fall_z(self) -> float:
        """By how many standard errors acceptance fell; negative if it rose, 0 if there is nothing to compare with."""
        if self._before is None:
            return 0.0
        before, after = self._before.estimate(self._correlation), self._after.estimate(self._correlation)
        return (before.rate - after.rate) / sqrt(before.variance + after.variance)

    @property
    def _is_known(self) -> bool:
        return len(self._after) >= self.config.min_rounds and self._after.num_queries >= _MIN_QUERIES
