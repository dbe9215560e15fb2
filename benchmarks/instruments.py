"""What benchmarks put into an engine to measure it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from osd.models.pass_output import PassOutput
from osd.models.target import Target
from osd.records.outcome import Outcome


class DiscardingRecorder:
    """Drops everything: of recording, the engine's own share is left."""

    def record(self, make: Callable[[], Outcome]) -> None:
        """Drop one."""

    def counters(self) -> dict[str, int]:
        """Nothing."""
        return {}


class PassClock:
    """Adds up the time of a CPU target's passes; a GPU has only been asked for one when it returns."""

    def __init__(self, target: Target) -> None:
        self.total_s = 0.0
        self._read = target.read
        setattr(target, "read", self._timed)  # noqa: B010 - a method is replaced

    def _timed(self, *args: Any, **options: Any) -> PassOutput:
        started_s = time.perf_counter()
        try:
            return self._read(*args, **options)
        finally:
            self.total_s += time.perf_counter() - started_s


class RoundEnds:
    """A streamer for `generate`: notes when each round ended, and how many tokens every row had got by then.

    Stopping criteria would not do: some releases of transformers ask them about proposals, too.
    """

    def __init__(self) -> None:
        self.at_s: list[float] = []
        self.num_tokens: list[int] = []
        self._num_rows = 0

    def put(self, ids: torch.Tensor) -> None:
        """Take the prompts, `[B, L]`, and then every round's tokens, `[B]` or `[1, N]`; they are on the host."""
        if not self._num_rows:
            self._num_rows = len(ids)
            return
        self.at_s.append(time.perf_counter())
        self.num_tokens.append(ids.numel() // self._num_rows + (self.num_tokens[-1] if self.num_tokens else 0))

    def end(self) -> None:
        """Nothing follows."""
