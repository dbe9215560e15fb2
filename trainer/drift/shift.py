"""Detects a lasting change of acceptance in one direction, query by query.

The value of a query is the share of its rounds whose first proposed token was accepted, which does not depend on the
speculation length. Rounds of one query are correlated, so a query of n rounds counts like n / (1 + (n - 1) rho)
independent ones (Kish 1965), and is compared with how far the values of earlier queries scattered.

Two tests of `river` decide: Page-Hinkley (1954), which is quick with sharp changes, and ADWIN (Bifet and Gavalda 2007),
which also finds slow ones.
"""

from __future__ import annotations

from collections import deque
from math import sqrt
from typing import Any, Literal, NamedTuple

from river.drift import ADWIN, PageHinkley

Direction = Literal["up", "down"]
_CORRELATION = 0.1
"""Assumed correlation between two rounds of one query, as in the watch after a swap."""
_MIN_QUERIES = 30
"""Queries before anything is judged."""
_LAG_QUERIES = 40
"""The newest queries do not belong to the reference that they are compared with, or a change would hide itself."""
_LEAST_SPREAD = 0.05
"""Lower bound of the standard deviation that one round's worth of value is taken to have."""
_LARGEST = 3.0
"""Most standard deviations that one query may deviate by, so that no single one decides."""
_ALLOWED = 0.5
"""Standard deviations by which the mean may differ without being a change."""
_WARN, _ALARM = 6.0, 11.0
"""Thresholds of the Page-Hinkley statistic, in standard deviations."""
_PRIOR_QUERIES = 300
"""Page-Hinkley takes deviations from their own mean; it starts with so many of zero, so that a change soon after the
start does not become that mean."""
_ADWIN_DELTA = 0.01
_KEPT_DEVIATIONS = 300
"""The newest ones, from which a restarted detector's tests are made again; all of them while there are no more."""


class Step(NamedTuple):
    """What one query changed."""

    warns: bool
    """The recent queries may differ from those before."""
    alarms: bool
    """They do."""


class ShiftDetector:
    """Compares recent queries with those before them.

    Args:
        direction: of the change that is looked for.
    """

    def __init__(self, direction: Direction) -> None:
        self.direction: Direction = direction
        self.reset()

    def reset(self) -> None:
        """Forget everything: the next queries are the new reference."""
        self._waiting: deque[tuple[float, float]] = deque()
        self._judged: deque[float] = deque(maxlen=_KEPT_DEVIATIONS)
        """The deviations that the tests have seen."""
        self._num = 0
        self._weight = self._sum = self._squares = 0.0
        self._warning = _page_hinkley(_WARN, self.direction)
        self._alarm = _page_hinkley(_ALARM, self.direction)
        self._other = _page_hinkley(_ALARM, "down" if self.direction == "up" else "up")
        self._adwin = ADWIN(delta=_ADWIN_DELTA, clock=8)

    @property
    def reference(self) -> float:
        """Mean value of the queries that the newest are compared with; 0 before there are enough."""
        return self._sum / self._weight if self._weight else 0.0

    def add(self, accepted: int, rounds: int) -> Step:
        """Add one query.

        Args:
            accepted: rounds whose first proposed token was accepted.
            rounds: rounds that proposed, at least one.
        """
        value, weight = accepted / rounds, rounds / (1 + _CORRELATION * (rounds - 1))
        self._num += 1
        step = Step(False, False)
        if self._weight and self._num > _MIN_QUERIES:
            step = self._judge((value - self.reference) * sqrt(weight) / self._spread)
        self._waiting.append((value, weight))
        if len(self._waiting) > (_LAG_QUERIES if self._num > _MIN_QUERIES + _LAG_QUERIES else self._num // 3):
            self._refer(*self._waiting.popleft())
        return step

    def state(self) -> dict[str, Any]:
        """JSON-serialisable."""
        return {
            "num": self._num,
            "weight": self._weight,
            "sum": self._sum,
            "squares": self._squares,
            "waiting": list(self._waiting),
            "judged": list(self._judged),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """What `state` returned."""
        self.reset()
        for deviation in state["judged"]:
            self._test(deviation)
        self._num, self._weight = state["num"], state["weight"]
        self._sum, self._squares = state["sum"], state["squares"]
        self._waiting.extend((value, weight) for value, weight in state["waiting"])

    @property
    def _spread(self) -> float:
        """Standard deviation of a query's value times the root of its weight."""
        num = self._num - len(self._waiting)
        return max(sqrt(self._squares / num) if num else 0.0, _LEAST_SPREAD)

    def _judge(self, deviation: float) -> Step:
        before = self._adwin.estimation
        self._test(min(max(deviation, -_LARGEST), _LARGEST))
        moved = self._adwin.estimation - before
        cut = self._adwin.drift_detected and (moved > 0) == (self.direction == "up")
        if self._other.drift_detected or (self._adwin.drift_detected and not cut):
            self.reset()  # a change in the other direction: the new level is normal from here on
            return Step(False, False)
        return Step(self._warning.drift_detected, self._alarm.drift_detected or cut)

    def _test(self, deviation: float) -> None:
        """Let all tests see one query's deviation."""
        self._judged.append(deviation)
        for test in (self._warning, self._alarm, self._other):
            test.update(deviation)
        self._adwin.update(deviation / (2 * _LARGEST) + 0.5)  # ADWIN's bound is for values between 0 and 1

    def _refer(self, value: float, weight: float) -> None:
        """Add one query to the reference."""
        if self._weight:
            self._squares += weight * (value - self.reference) ** 2
        self._weight += weight
        self._sum += weight * value


def _page_hinkley(threshold: float, direction: Direction) -> PageHinkley:
    test = PageHinkley(min_instances=1, delta=_ALLOWED, threshold=threshold, alpha=1.0, mode=direction)
    for _ in range(_PRIOR_QUERIES):
        test.update(0.0)
    return test
