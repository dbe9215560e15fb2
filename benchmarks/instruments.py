"""Instruments that benchmarks put into an engine."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from osd.kernels.backend import PassOutput
from osd.models.target import Target
from osd.records.outcome import Outcome


class DiscardingRecorder:
    """A recorder that drops outcomes, so that only the engine's own share of recording is measured."""

    def takes(self, request_id: str) -> bool:
        """Every query's."""
        return True

    def record(self, make: Callable[[], Outcome]) -> None:
        """Drop an outcome."""

    def counters(self) -> dict[str, int]:
        """No counters."""
        return {}


class PassClock:
    """Sums the durations of a target's passes on a CPU; on a GPU, `read` returns before the pass is done."""

    def __init__(self, target: Target) -> None:
        self.total_s = 0.0
        self._read = target.read
        setattr(target, "read", self._timed)  # noqa: B010 - replaces a method

    def _timed(self, *args: Any, **options: Any) -> PassOutput:
        started_s = time.perf_counter()
        try:
            return self._read(*args, **options)
        finally:
            self.total_s += time.perf_counter() - started_s


class RoundEnds:
    """A streamer for `generate` that notes when each round ended, and how many tokens each row had by then.

    Stopping criteria do not serve for that, since some releases of transformers also call them for proposals.
    """

    def __init__(self) -> None:
        self.at_s: list[float] = []
        self.num_tokens: list[int] = []
        self._num_rows = 0

    def put(self, ids: torch.Tensor) -> None:
        """Receive the prompts, `[B, L]`, then every round's tokens, `[B]` or `[1, N]`, on the host."""
        if not self._num_rows:
            self._num_rows = len(ids)
            return
        self.at_s.append(time.perf_counter())
        self.num_tokens.append(ids.numel() // self._num_rows + (self.num_tokens[-1] if self.num_tokens else 0))

    def end(self) -> None:
        """The end of the answers; nothing to note."""
