"""How long a round drafted and verified; on a GPU, where the host only asks for work, the device is asked too."""

from __future__ import annotations

import time

import torch


class RoundClock:
    """Times one round after another; a device's events are made once, for making them takes longer than recording."""

    def __init__(self, device: torch.device) -> None:
        self._events = _events() if device.type == "cuda" else ()
        self._device = device
        self._times_s: list[float] = []

    def start(self) -> None:
        """A round begins."""
        self._times_s = []
        self._mark()

    def drafted(self) -> None:
        """The proposal was made, or asked for."""
        self._mark()

    def split_ms(self) -> tuple[float, float]:
        """Milliseconds of drafting and of verifying; to be called when the host has waited for the verdicts."""
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
