"""The share of time that the engine is busy, as an exponential moving average over continuous time."""

from __future__ import annotations

import math
import time

_MEMORY_S = 2.0


class Utilisation:
    """The share of the last seconds spent busy, 0 to 1; the average's time constant is `_MEMORY_S`."""

    def __init__(self) -> None:
        self._share = 0.0
        self._at_s = time.monotonic()

    def add_busy(self, started_s: float, ended_s: float) -> None:
        """Record that the engine was busy between two times of `time.monotonic`."""
        self._share = self._idle_until(started_s)
        self._share = 1.0 - (1.0 - self._share) * math.exp(-(ended_s - started_s) / _MEMORY_S)
        self._at_s = ended_s

    def share(self) -> float:
        """The share as of now."""
        return self._idle_until(time.monotonic())

    def _idle_until(self, at_s: float) -> float:
        return self._share * math.exp(-max(at_s - self._at_s, 0.0) / _MEMORY_S)
