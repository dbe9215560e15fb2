"""Hot swap: prepares an ordered drafter version beside the serving one, and swaps it in between two steps.

consumes: orders of the supervisor
waits for: an order; after a failure to read the store, the retry interval
is unblocked by: `order`, `stop`
on failure: a version that is damaged or does not fit is refused once, with the reason; the old one continues to serve
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from osd.ports.swap import SwapPort
from osd.ports.weight_store import WeightStore
from osd.records.errors import OsdError, WeightsRefusedError
from osd.records.events import Event

_log = logging.getLogger(__name__)


class HotSwap:
    """Lets one drafter of an engine serve the version that was ordered last.

    Args:
        store: where versions are published.
        engine: serves the drafter.
        retry_s: pause before a store that is away is read again.
        on_event: called on refusals.
    """

    def __init__(
        self,
        store: WeightStore,
        engine: SwapPort,
        *,
        retry_s: float,
        on_event: Callable[[Event], None],
    ) -> None:
        self._store, self._engine, self._on_event = store, engine, on_event
        self._retry_s = retry_s
        self._ordered: int | None = None
        self._refused: dict[int, str] = {}
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="osd-hot-swap", daemon=True)

    def start(self) -> None:
        """Start the thread that swaps."""
        self._thread.start()

    def stop(self) -> None:
        """Stop it."""
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()

    def order(self, number: int) -> None:
        """Serve this version as soon as possible. Any thread may call this; the last order counts."""
        if number != self._ordered:
            self._ordered = number
            self._wake.set()

    def refused(self) -> dict[int, str]:
        """Every version that could not be used, and why."""
        return dict(self._refused)

    def obey(self) -> None:
        """Carry out the last order, in the caller's thread.

        Raises:
            OsdError: the store cannot be read now.
        """
        number = self._ordered
        if number is None or number in self._refused or number == self._engine.serving():
            return
        try:
            self._engine.prepare(*self._store.load(number))
        except WeightsRefusedError as error:
            self._refused[number] = str(error)
            message = f"drafter version {number} refused: {error}"
            self._on_event(Event(at_s=time.time(), kind="refuse", message=message, data={"version": number}))
            return
        self._engine.commit()

    def _run(self) -> None:
        trouble = ""
        while not self._stopping.is_set():
            self._wake.clear()
            try:
                self.obey()
                trouble = ""
            except OsdError as error:  # the store is away: said once, and the version in use serves on
                if str(error) != trouble:
                    _log.warning("cannot read new drafter weights: %s", error)
                trouble = str(error)
            except Exception as error:
                _log.exception("swapping drafter weights failed; trying again")
                trouble = str(error)
            self._wake.wait(self._retry_s if trouble else None)
