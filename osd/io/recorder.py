"""Writes outcomes from the engine to the outcome stream without blocking the engine.

The recorder thread's loop consumes the queue filled by `record()`. It waits for an outcome, for the next retry while
the stream is unreachable, or for `close()`. On failure of the stream, outcomes go to the spill file, which is replayed,
oldest first, before anything newer once the stream is back.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Protocol

from osd.fleet.record_share import is_recorded
from osd.ports.outcomes import OutcomeSink
from osd.records.errors import OutcomeSinkError
from osd.records.outcome import Outcome

logger = logging.getLogger(__name__)

MEANINGS = {
    "outcomes_recorded": "Outcomes that reached the stream.",
    "outcomes_spilled": "Outcomes written to the spill file because the stream was away.",
    "outcomes_replayed": "Of the outcomes that reached the stream, those that came by way of the spill file.",
    "outcomes_dropped": "Outcomes lost: the queue or the spill file was full.",
    "outcomes_left_out": "Queries not recorded because the stream was near its limit (outcomes.max_bytes_per_s).",
}
"""Counter name to help text; all count since the recorder started."""


class Spill(Protocol):
    """Holds outcomes while the stream is unreachable."""

    def append(self, outcome: Outcome) -> bool:
        """Add an outcome at the end; False when it cannot be stored."""
        ...

    def replay(self) -> Iterator[Outcome]:
        """Every stored outcome, oldest first; asking for the next one removes the one before."""
        ...


class Recorder:
    """Records outcomes in order, on its own thread."""

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
            spill: Used by the recorder's thread only. What an earlier process left in it is delivered first.
            queue_entries: Most outcomes waiting in memory; further ones are dropped.
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
        self.share = 1.0
        """Share of the queries that are recorded; any thread may set it."""
        self._closing = False
        self._busy = False
        self._counts = dict.fromkeys(MEANINGS, 0)
        # Used by the recorder's thread only:
        self._backlog = True  # an earlier process may have left outcomes in the spill
        self._retry_s = first_retry_s
        self._retry_at_s = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="osd-recorder", daemon=True)
        if sink is not None:
            self._thread.start()

    def record(self, make: Callable[[], Outcome]) -> None:
        """Queue one outcome; the recorder's thread calls `make` to assemble it. Never blocks, never raises."""
        if self._sink is None:
            return
        with self._changed:
            if self._closing or len(self._queue) >= self._queue_entries:
                self._counts["outcomes_dropped"] += 1
            else:
                self._queue.append(make)
                self._changed.notify_all()

    def takes(self, request_id: str) -> bool:
        """Whether this query belongs to the share that is recorded; counts it if not."""
        if self._sink is None or is_recorded(request_id, self.share):
            return True
        self._count("outcomes_left_out")
        return False

    def counters(self) -> dict[str, int]:
        """Monotone counts since the start, by the names in `MEANINGS`."""
        with self._changed:
            return dict(self._counts)

    def flush(self, timeout_s: float) -> bool:
        """Wait until no outcome is in memory: each was recorded, spilled or dropped. False when time ran out."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._queue and not self._busy, timeout_s)

    def close(self, timeout_s: float = 10.0) -> None:
        """Write what is queued to the stream or the spill, and end the thread; later outcomes are dropped.

        Returns after `timeout_s` even if the stream still blocks.
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
                # The spill holds older outcomes than the queue, so it is replayed first.
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
        """Deliver one outcome to the stream, or spill it."""
        outcome = self._made(make)
        if outcome and (self._backlog or not self._deliver(outcome)):
            self._keep(outcome)

    def _pause_s(self) -> float | None:
        """Seconds until the spill is due for replay; None while the spill is empty."""
        return max(self._retry_at_s - time.monotonic(), 0.0) if self._backlog else None

    def _postpone(self) -> None:
        self._retry_at_s = time.monotonic() + self._retry_s
        self._retry_s = min(2 * self._retry_s, self._longest_retry_s)

    def _replay(self) -> None:
        """Deliver the spill. Outcomes that arrive meanwhile are appended to it, which keeps the order."""
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
        """Put one outcome into the stream; False when it should be spilled."""
        assert self._sink is not None
        try:
            self._sink.put(outcome)
        except OutcomeSinkError as error:
            logger.warning("outcomes are spilled, next attempt in %.1f s: %s", self._retry_s, error)
            self._backlog = True
            self._postpone()
            return False
        except Exception:  # this outcome can never be stored; later ones may
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
