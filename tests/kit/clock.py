"""A clock for tests of what depends on time."""

from __future__ import annotations


class Clock:
    """A clock that only advances when told.

    Args:
        now_s: where it begins.
    """

    def __init__(self, now_s: float = 0.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s
