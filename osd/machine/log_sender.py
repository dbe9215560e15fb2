"""Sends what a process logs to another process, which keeps the lines of many: in batches, bounded while it is away."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

_INTERVAL_S = 1.0
_MAX_LINES = 2000


class LogSender(logging.Handler):
    """Sends formatted records about once a second, on a thread of its own, so that whoever logs never waits.

    consumes: records, as lines
    waits for: the interval
    is unblocked by: `close`
    on failure: the lines are sent again later; beyond `max_lines` the oldest are dropped, and their number is sent

    Args:
        send: takes the lines, oldest first; what it raises means that they may not have arrived.
        interval_s: pause between two batches.
        max_lines: most lines that wait.
    """

    def __init__(
        self, send: Callable[[list[str]], None], *, interval_s: float = _INTERVAL_S, max_lines: int = _MAX_LINES
    ) -> None:
        super().__init__()
        self._send, self._interval_s, self._max_lines = send, interval_s, max_lines
        self._waiting: deque[str] = deque()
        self._num_dropped = 0
        self._guard = threading.Lock()
        """Guards the lines that wait, and the number of those that were dropped."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="osd-log-sender", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Let a record wait for the next batch; what sending itself logs is left out, or it would never end."""
        if threading.current_thread() is self._thread:
            return
        line = self.format(record)
        with self._guard:
            self._waiting.append(line)
            self._drop_oldest()

    def close(self) -> None:
        """Send what waits, once, and stop."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        super().close()

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            self._send_waiting()
        self._send_waiting()

    def _send_waiting(self) -> None:
        with self._guard:
            taken, dropped = list(self._waiting), self._num_dropped
            self._waiting.clear()
            self._num_dropped = 0
        if not taken:
            return
        note = [f"{dropped} older lines of this process were dropped while nobody took them"] if dropped else []
        try:
            self._send(note + taken)
        except Exception:  # noqa: BLE001 - the receiver may be restarting, which raises many types
            with self._guard:
                self._waiting.extendleft(reversed(taken))
                self._num_dropped += dropped
                self._drop_oldest()

    def _drop_oldest(self) -> None:
        while len(self._waiting) > self._max_lines:
            self._waiting.popleft()
            self._num_dropped += 1
