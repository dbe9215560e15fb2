"""Discrete events: what happens when, and stations that serve one customer at a time, first come first served."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count


class Events:
    """What happens, in order of time; `now_s` is the simulated time."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()

    def at(self, at_s: float, happen: Callable[[], None]) -> None:
        """Let something happen at a time; of equal times, what was said first comes first."""
        heapq.heappush(self._events, (at_s, next(self._numbers), happen))

    def run(self, until_s: float) -> None:
        """Let everything happen up to a time."""
        while self._events and self._events[0][0] <= until_s:
            self.now_s, _, happen = heapq.heappop(self._events)
            happen()
        self.now_s = until_s


class Station:
    """Serves customers one after the other.

    Args:
        events: of the simulation.
    """

    def __init__(self, events: Events) -> None:
        self._events = events
        self._free_s = 0.0
        self.busy_s = 0.0
        self.waits_s: list[float] = []

    def serve(self, takes_s: float, then: Callable[[], None] = lambda: None) -> None:
        """Queue a customer now, and let something happen when it has been served."""
        started_s = max(self._free_s, self._events.now_s)
        self.waits_s.append(started_s - self._events.now_s)
        self._free_s = started_s + takes_s
        self.busy_s += takes_s
        self._events.at(self._free_s, then)

    def utilisation(self, until_s: float) -> float:
        """Work that came in by the time that there was; above 1 it piles up."""
        return self.busy_s / until_s

    def late_s(self) -> float:
        """The wait that one customer in a hundred exceeds."""
        return sorted(self.waits_s)[int(0.99 * len(self.waits_s))] if self.waits_s else 0.0
