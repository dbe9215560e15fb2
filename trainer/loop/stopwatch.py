"""Adds up the time spent in one kind of work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Stopwatch:
    """Runs inside a `with` block, except where it is halted; one thread uses it, any may read `total_s`.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._started_s = 0.0
        self.total_s = 0.0
        """Seconds so far, without the block that is not over."""

    def __enter__(self) -> None:
        self._started_s = self._clock()

    def __exit__(self, *_: object) -> None:
        self.total_s += self._clock() - self._started_s

    @contextmanager
    def halted(self) -> Iterator[None]:
        """Do not count this part of the block."""
        halted_s = self._clock()
        try:
            yield
        finally:
            self._started_s += self._clock() - halted_s
