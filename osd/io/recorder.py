"""From the engine to the outcome stream without ever holding up a step.

The recorder's loop consumes the queue of `record()`; waits for an outcome, for the time of the next attempt while the
stream is away, or for `close()`; is unblocked by `record()`; on a failing stream puts outcomes into the spill, which is
replayed, oldest first, before anything newer once the stream is back.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Protocol

from osd.ports.outcomes import OutcomeSink
from osd.records.errors import OutcomeSinkError
from osd.records.outcome import Outcome

logger = logging.getLogger(__name__)

MEANINGS = {
    "outcomes_recorded": "Outcomes that reached the stream.",
    "outcomes_spilled": "Outcomes written to the spill file because the stream was away.",
    "outcomes_replayed": "Of the outcomes that reached the stream, those that came by way of the spill file.",
    "outcomes_dropped": "Outcomes lost: the queue or the spill file was full.",
}
"""Counter to its help text, all since the recorder started."""


class Spill(Protocol):
    """Where outcomes wait while the stream is away."""

    def append(self, outcome: Outcome) -> bool:
        """Keep one; False when it cannot be kept."""
        ...

    def replay(self) -> Iterator[Outcome]:
        """Every kept outcome, oldest first; asking for the next one consumes the one before."""
        ...


class Recorder:
    """Records outcomes on a thread of its own, in order."""

    def __init__(
        self,
        sink: OutcomeSink | None,
        spill: Spill,
        *,
        queue_entries: int,
        first_retry_s: float = 0.25,
        longest_retry_s: float = 15.0,
    ) -> None:
        """Start the thread.

        Args:
            sink: The outcome stream; None records nothing and counts nothing.
            spill: Used by the recorder's thread only. What a former process left in it is delivered first.
            queue_entries: Most outcomes held in memory; more are dropped.
            first_retry_s: Pause after the stream first failed; it doubles with each further failure.
            longest_retry_s: Longest such pause.
        """
        self._sink = sink
        self._spill = spill
        self._queue_entries = queue_entries
        self._first_retry_s = first_retry_s
        self._longest_retry_s = longest_retry_s
        self._queue: deque[Callable[[], Outcome]] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._busy = False
        self._counts = dict.fromkeys(MEANINGS, 0)
        # The recorder's thread alone uses these.
        self._backlog = True  # a former process may have left one
        self._retry_s = first_retry_s
        self._retry_at_s = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="osd-recorder", daemon=True)
        if sink is not None:
            self._thread.start()

    def record(self, make: Callable[[], Outcome]) -> None:
        """Queue one outcome; `make` assembles it on the recorder's thread. Never blocks and never raises."""
        if self._sink is None:
            return
        with self._changed:
            if self._closing or len(self._queue) >= self._queue_entries:
                self._counts["outcomes_dropped"] += 1
            else:
                self._queue.append(make)
                self._changed.notify_all()

    def counters(self) -> dict[str, int]:
        """Monotone counts since the start; `MEANINGS` says of what."""
        with self._changed:
            return dict(self._counts)

    def flush(self, timeout_s: float) -> bool:
        """Wait until no outcome is held in memory: each was recorded, spilled or dropped. False when time ran out."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._queue and not self._busy, timeout_s)

    def close(self, timeout_s: float = 10.0) -> None:
        """Bring what is queued to the stream or the spill and end the thread; later outcomes are dropped.

        Returns after `timeout_s` even where the stream still hangs.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._queue or self._closing, self._pause_s())
                # What is in the queue is newer than the spill, so it stays there until the spill had its turn.
                replay = self._pause_s() == 0 and not self._closing
                make = self._queue.popleft() if self._queue and not replay else None
                if make is None and self._closing:
                    return
                self._busy = True
            try:
                if replay:
                    self._replay()
                elif make:
                    self._handle(make)
            except Exception:
                logger.exception("the recorder failed; going on")
                self._postpone()

    def _handle(self, make: Callable[[], Outcome]) -> None:
        """Deliver or spill one outcome."""
        outcome = self._made(make)
        if outcome and (self._backlog or not self._deliver(outcome)):
            self._keep(outcome)

    def _pause_s(self) -> float | None:
        """Until the spill is due for replay; None while there is nothing in it."""
        return max(self._retry_at_s - time.monotonic(), 0.0) if self._backlog else None

    def _postpone(self) -> None:
        self._retry_at_s = time.monotonic() + self._retry_s
        self._retry_s = min(2 * self._retry_s, self._longest_retry_s)

    def _replay(self) -> None:
        """Deliver the spill. What arrives meanwhile joins its end, so the queue stays short and the order is kept."""
        for outcome in self._spill.replay():
            if self._closing or not self._deliver(outcome, replayed=True):
                return
            with self._changed:
                arrived = list(self._queue)
                self._queue.clear()
            for make in arrived:
                if newer := self._made(make):
                    self._keep(newer)
        self._backlog = False

    def _deliver(self, outcome: Outcome, *, replayed: bool = False) -> bool:
        """Give one to the stream; False when it should be kept for later."""
        assert self._sink is not None
        try:
            self._sink.put(outcome)
        except OutcomeSinkError as error:
            logger.warning("outcomes are spilled, next attempt in %.1f s: %s", self._retry_s, error)
            self._backlog = True
            self._postpone()
            return False
        except Exception:  # this outcome can never be taken; those after it may
            logger.exception("an outcome is dropped")
            self._count("outcomes_dropped")
            return True
        self._retry_s = self._first_retry_s
        self._count("outcomes_recorded")
        if replayed:
            self._count("outcomes_replayed")
        return True

    def _keep(self, outcome: Outcome) -> None:
        try:
            kept = self._spill.append(outcome)
        except Exception:
            logger.exception("an outcome could not be spilled")
            kept = False
        self._count("outcomes_spilled" if kept else "outcomes_dropped")

    def _made(self, make: Callable[[], Outcome]) -> Outcome | None:
        try:
            return make()
        except Exception:
            logger.exception("an outcome could not be assembled and is dropped")
            self._count("outcomes_dropped")
            return None

    def _count(self, name: str) -> None:
        with self._changed:
            self._counts[name] += 1
