"""A thread that does the same thing again and again until it is stopped."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from osd.records.errors import OsdError

_log = logging.getLogger(__name__)


class Repeated:
    """Does something every so often.

    consumes: nothing
    waits for: the interval
    is unblocked by: `close`
    on failure: an `OsdError` is logged once for as long as its message stays the same, others each time; it goes on

    Args:
        work: what is done.
        interval_s: pause between two times.
        name: of the thread.
        what: the work in words, for the log: "look for new drafter weights".
    """

    def __init__(self, work: Callable[[], None], *, interval_s: float, name: str, what: str) -> None:
        self._work, self._interval_s, self._what = work, interval_s, what
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """Stop it, if it was started, and wait for its end."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        trouble = ""
        while not self._stop.is_set():
            try:
                self._work()
                trouble = ""
            except OsdError as error:
                if str(error) != trouble:
                    _log.warning("cannot %s: %s", self._what, error)
                trouble = str(error)
            except Exception:
                _log.exception("cannot %s; trying again", self._what)
            self._stop.wait(self._interval_s)
