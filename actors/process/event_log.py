"""The newest events of one actor."""

from __future__ import annotations

import threading
from collections import deque

from osd.records.events import Event

_MAX_EVENTS = 500


class EventLog:
    """A bounded log; any thread may append and read."""

    def __init__(self) -> None:
        self._events: deque[Event] = deque(maxlen=_MAX_EVENTS)
        self._lock = threading.Lock()

    def add(self, event: Event) -> None:
        """Append one."""
        with self._lock:
            self._events.append(event)

    def newest(self, limit: int) -> list[Event]:
        """The newest events, oldest first."""
        with self._lock:
            return list(self._events)[-limit:] if limit > 0 else []
