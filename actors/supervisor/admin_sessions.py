"""Browser sessions of the admin page. Only digests of their secrets are kept."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

SESSION_S = 12 * 3600
_MAX_SESSIONS = 64


class AdminSessions:
    """Open sessions, in memory: a restart of the process signs everyone out. Any thread may call any method.

    Args:
        clock_s: monotonic seconds.
    """

    def __init__(self, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._clock_s, self._lock = clock_s, threading.Lock()
        self._ends_s: OrderedDict[str, float] = OrderedDict()

    def open(self, digest: str) -> None:
        """Open a session; beyond 64, the oldest ends."""
        with self._lock:
            self._ends_s[digest] = self._clock_s() + SESSION_S
            while len(self._ends_s) > _MAX_SESSIONS:
                self._ends_s.popitem(last=False)

    def has(self, digest: str) -> bool:
        """Whether it is open and has not expired."""
        return self._ends_s.get(digest, 0.0) > self._clock_s()

    def close(self, digest: str) -> None:
        """End a session."""
        with self._lock:
            self._ends_s.pop(digest, None)
