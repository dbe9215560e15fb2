"""How long a round drafted and verified; on a GPU, where the host only asks for work, the device is asked too."""

from __future__ import annotations

import time

import torch


class RoundClock:
    """Starts with the round."""

    def __init__(self, device: torch.device) -> None:
        self._events: list[torch.cuda.Event] = []
        self._device = device
        self._times_s: list[float] = []
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
        self._times_s.append(time.perf_counter())
        if self._device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch left it untyped
            event.record(torch.cuda.current_stream(self._device))
            self._events.append(event)
