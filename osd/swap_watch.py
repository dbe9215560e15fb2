"""After a swap: is the new drafter version accepted as often as the one before it?

What is compared is the share of rounds whose *first* proposed token was accepted. Unlike accepted / proposed it does
not depend on the speculation length, which the policy changes as acceptance changes. A two-proportion z-test on the
newest rounds of either version decides, with one success and one failure added to each (Agresti & Caffo 2000, The
American Statistician 54): without them, a few rounds at a rate near 1 accuse a sound version.
"""

from __future__ import annotations

from collections import deque
from math import sqrt
from typing import Literal, NamedTuple

from osd.config import SwapConfig

Verdict = Literal["undecided", "sound", "worse"]


class SwapWatch:
    """First-token acceptance of the serving version, against that of its predecessor."""

    def __init__(self, config: SwapConfig) -> None:
        self.config = config
        self._before: list[bool] = []
        self._rounds: deque[bool] = deque(maxlen=config.watch_rounds)
        self._num_after = 0
        self._watching = False

    def swapped(self, *, watch: bool) -> None:
        """Another version serves from now on; `watch` is False after a roll back, which is not judged again."""
        # A roll back returns to the version that `_before` is of.
        if watch and len(self._rounds) >= self.config.min_rounds:
            self._before = list(self._rounds)
        self._rounds.clear()
        self._num_after = 0
        self._watching = watch and len(self._before) >= self.config.min_rounds

    @property
    def wants_rounds(self) -> bool:
        """True while the new version has too few rounds to be judged: speculate at least a little."""
        return self._watching and self._num_after < self.config.min_rounds

    def observe(self, first_accepted: bool) -> None:
        """One row's round that proposed at least one token."""
        self._rounds.append(first_accepted)
        self._num_after += 1

    def verdict(self) -> Verdict:
        """Judged after every round from `min_rounds` on; sound after `watch_rounds`."""
        if not self._watching:
            return "sound"
        if self._num_after < self.config.min_rounds:
            return "undecided"
        if self.fall_z() > self.config.roll_back_z:
            self._watching = False
            return "worse"
        if self._num_after >= self.config.watch_rounds:
            self._watching = False
            return "sound"
        return "undecided"

    def rates(self) -> tuple[float, float]:
        """First-token acceptance (before, after) the swap."""
        return _mean(self._before), _mean(self._rounds)

    def fall_z(self) -> float:
        """By how many standard errors acceptance fell; negative when it rose."""
        before, after = _moderate(self._before), _moderate(self._rounds)
        return (before.rate - after.rate) / sqrt(before.variance + after.variance)


class _Estimate(NamedTuple):
    rate: float
    variance: float


def _moderate(flags: list[bool] | deque[bool]) -> _Estimate:
    number = len(flags) + 2
    rate = (sum(flags) + 1) / number
    return _Estimate(rate, rate * (1 - rate) / number)


def _mean(flags: list[bool] | deque[bool]) -> float:
    return sum(flags) / len(flags) if flags else 0.0
