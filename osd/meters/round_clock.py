"""Measures a round's drafting and verifying time; on a GPU, whose work is asynchronous, by CUDA events."""

from __future__ import annotations

import time

import torch


class RoundClock:
    """Times one round after another. CUDA events are created once, since creating them costs more than recording."""

    def __init__(self, device: torch.device) -> None:
        self._events = _events() if device.type == "cuda" else ()
        self._device = device
        self._times_s: list[float] = []

    def start(self) -> None:
        """Begin the time of a round."""
        self._times_s = []
        self._mark()

    def drafted(self) -> None:
        """End the time of drafting: the proposal is made (on a GPU: its work is queued)."""
        self._mark()

    def split_ms(self) -> tuple[float, float]:
        """(drafting, verifying) time in milliseconds; call it once the host has waited for the verdicts."""
        started_s, drafted_s, ended_s = *self._times_s, time.perf_counter()
        draft_ms = (drafted_s - started_s) * 1e3
        if self._events:
            draft_ms = self._events[0].elapsed_time(self._events[1])
        return draft_ms, max((ended_s - started_s) * 1e3 - draft_ms, 0.0)

    def _mark(self) -> None:
        if self._events:
            self._events[len(self._times_s)].record(torch.cuda.current_stream(self._device))
        self._times_s.append(time.perf_counter())


def _events() -> tuple[torch.cuda.Event, torch.cuda.Event]:
    start, drafted = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]  # torch's
    return start, drafted
