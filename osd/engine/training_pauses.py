"""Pauses the engine for a share of its time, so that training can run whatever the priorities of threads are.

A trainer of the lowest priority gets next to no time beside an engine that is never idle. So for as long as training
pays, the engine pauses between steps for a set share of its time; the trainer runs in these pauses.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

_SHORTEST_PAUSE_S = 0.03
"""Pauses are saved up to this length. The engine's threads wait spinning for some 5 ms (GNU OpenMP's default) before
they sleep, so of a shorter pause another process gets little."""
_LONGEST_PAUSE_S = 0.05
"""Of one pause, so that a client sees no stall; after a long step several pauses follow."""


class _Grant(NamedTuple):
    share: float
    until_s: float


class TrainingPauses:
    """How long to pause after each step.

    `grant` may be called from any thread; the rest belongs to the engine's thread.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._grant = _Grant(0.0, 0.0)
        self._owed_s = 0.0

    def grant(self, share: float, for_s: float) -> None:
        """Pause for this share of the time, 0 to below 1, until `for_s` seconds from now or the next grant."""
        self._grant = _Grant(share, self._clock() + for_s)

    def pause_s(self, step_s: float) -> float:
        """How long to pause now.

        Args:
            step_s: what the step that just ended took.
        """
        share, until_s = self._grant
        if not share or self._clock() >= until_s:
            self._owed_s = 0.0
            return 0.0
        self._owed_s += step_s * share / (1.0 - share)
        return min(self._owed_s, _LONGEST_PAUSE_S) if self._owed_s >= _SHORTEST_PAUSE_S else 0.0

    def paused(self, paused_s: float) -> None:
        """Note how long a pause took: less than planned if a command ended it."""
        self._owed_s = max(self._owed_s - paused_s, 0.0)
