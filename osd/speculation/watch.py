"""After a swap: is the new drafter version accepted as often as the one before it?

What is compared is the share of rounds whose *first* proposed token was accepted. Unlike accepted / proposed it does
not depend on the speculation length, which the policy changes as acceptance changes. A two-proportion z-test on the
newest rounds of either version decides. A version is not worse because the first query after its swap is a hard one:
several are waited for, and rounds count for what those of one query are worth together.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import sqrt

from osd.config.settings import SwapConfig
from osd.records.acceptance_figures import Verdict
from osd.speculation.first_token_window import FirstTokenWindow

_MIN_QUERIES = 3
_LEAST_CORRELATION = 0.1
"""Of rounds of one query; a few queries may look more alike than queries are."""


class SwapWatch:
    """First-token acceptance of the serving version, against that of its predecessor."""

    def __init__(self, config: SwapConfig) -> None:
        self.config = config
        self._before: FirstTokenWindow | None = None
        self._after = FirstTokenWindow(config.watch_rounds)
        self._correlation = _LEAST_CORRELATION
        self._watching = False
        self._verdict: Verdict = "sound"

    def swapped(self, *, watch: bool) -> None:
        """Another version serves from now on; `watch` is False after a roll back, which is not judged again."""
        # A roll back returns to the version that `_before` is of.
        if watch and self._is_known:
            self._before = self._after
            # How much queries differ is read from the version that is known well.
            self._correlation = max(self._before.correlation(), _LEAST_CORRELATION)
        self._after = FirstTokenWindow(self.config.watch_rounds)
        self._watching = watch and self._before is not None
        self._verdict = "undecided" if self._watching else "sound"

    def wants_rounds(self, queries: Iterable[str]) -> bool:
        """True while the new version is being judged and one of these could help: speculate at least a little."""
        return self._watching and any(self._after.takes(query) for query in queries)

    def observe(self, query: str, first_accepted: bool) -> None:
        """One row's round that proposed at least one token. Of a version found worse nothing more is needed."""
        if self._verdict != "worse" and self._after.takes(query):
            self._after.add(query, first_accepted)

    def verdict(self) -> Verdict:
        """To be asked after every round: a version is judged once there are enough, and sound after `watch_rounds`."""
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
        """By how many standard errors acceptance fell; negative when it rose, 0 with nothing to compare with."""
        if self._before is None:
            return 0.0
        before, after = self._before.estimate(self._correlation), self._after.estimate(self._correlation)
        return (before.rate - after.rate) / sqrt(before.variance + after.variance)

    @property
    def _is_known(self) -> bool:
        return len(self._after) >= self.config.min_rounds and self._after.num_queries >= _MIN_QUERIES
