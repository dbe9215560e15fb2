"""Reports to the supervisor about once a second, and passes its orders on.

consumes: the engine's state; the supervisor's answers
waits for: the interval between two reports
is unblocked by: `close`
on failure: a supervisor that does not answer is asked again; the engine goes on with its last orders
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from actors.calls.ask import Ask
from osd.fleet.heartbeat import EngineOrders, EngineReport

_log = logging.getLogger(__name__)
_TIMEOUT_S = 5.0


class Reporter:
    """Sends an engine's reports, on a thread of its own, so that nobody waits for the supervisor.

    Args:
        ask: calls the supervisor.
        supervisor: its name.
        make: makes the next report; its argument is whether it has to be full.
        obey: called with the orders that answer it.
        interval_s: pause between two reports.
    """

    def __init__(
        self,
        ask: Ask,
        supervisor: str,
        make: Callable[[bool], EngineReport],
        obey: Callable[[EngineOrders], None],
        *,
        interval_s: float,
    ) -> None:
        self._ask, self._supervisor, self._make, self._obey = ask, supervisor, make, obey
        self._interval_s = interval_s
        self._session = ""
        """Of the supervisor that answered last; empty: a report may have been lost."""
        self._trouble = ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="osd-reporter", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop reporting."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._report()
                self._trouble = ""
            except Exception as error:  # while an actor restarts, Ray raises many types
                self._session = ""
                if str(error) != self._trouble:
                    self._trouble = str(error)
                    _log.warning("the supervisor does not answer, going on with its last orders: %s", error)
            self._stop.wait(self._interval_s)

    def _report(self) -> None:
        report = self._make(not self._session)
        orders: EngineOrders = self._ask(self._supervisor, "report", report, timeout_s=_TIMEOUT_S)
        if report.is_full or orders.session == self._session:
            self._session = orders.session
        else:  # it was restarted meanwhile and needs everything
            self._session = ""
        self._obey(orders)
