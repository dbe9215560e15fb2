"""Hot swap: prepares an ordered drafter version beside the serving one, and swaps it in between two steps.

A domain's drafter is read when a query of the domain comes, and again after it has left memory for others.

consumes: orders of the supervisor; domains that queries came of
waits for: an order, or such a domain; after a failure to read the store, the retry interval
is unblocked by: `order`, `want`, `stop`
on failure: a version that is damaged or does not fit is refused once, with the reason; the old one continues to serve
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping

from osd.ports.swap import SwapPort
from osd.ports.weight_store import WeightStore
from osd.records.drafter_id import domain_of
from osd.records.errors import OsdError, WeightsRefusedError
from osd.records.events import Event

_log = logging.getLogger(__name__)


class HotSwap:
    """Lets each drafter of an engine serve the version that was ordered last.

    Args:
        store_of: the store of a drafter's versions, by the drafter's name.
        engine: serves the drafters.
        retry_s: pause before a store that is away is read again.
        on_event: called on refusals.
    """

    def __init__(
        self,
        store_of: Callable[[str], WeightStore],
        engine: SwapPort,
        *,
        retry_s: float,
        on_event: Callable[[Event], None],
    ) -> None:
        self._store_of, self._engine, self._on_event = store_of, engine, on_event
        self._retry_s = retry_s
        self._ordered: dict[str, int] = {}
        self._wanted: set[str] = set()
        """Drafters of domains that queries came of while they were not in memory."""
        self._refused: dict[tuple[str, int], str] = {}
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

    def order(self, versions: Mapping[str, int]) -> None:
        """Let drafters serve these versions as soon as possible; a domain's once it is wanted.

        Any thread may call this; the last order counts.

        Args:
            versions: by drafter's name; 0 lets the base drafter serve a domain.
        """
        if versions != self._ordered:
            self._ordered = dict(versions)
            self._wake.set()

    def want(self, name: str) -> None:
        """A query came of a domain whose drafter is not in memory. Any thread may call this; it is quick."""
        if self._ordered.get(name) and (name, self._ordered[name]) not in self._refused:
            self._wanted.add(name)
            self._wake.set()

    def refused(self) -> dict[str, dict[int, str]]:
        """By drafter's name, every version that could not be used, and why."""
        found: dict[str, dict[int, str]] = {}
        for (name, number), why in list(self._refused.items()):
            found.setdefault(name, {})[number] = why
        return found

    def obey(self) -> None:
        """Carry out the last order, in the caller's thread.

        Raises:
            OsdError: the store cannot be read now.
        """
        for name, number in self._ordered.items():
            self._serve(name, number)

    def _serve(self, name: str, number: int) -> None:
        serving, is_own = self._engine.serving(name), bool(domain_of(name))
        if is_own and not number and serving is not None:
            self._engine.remove(name)
        is_idle = is_own and serving is None and name not in self._wanted
        if not number or is_idle or number == serving or (name, number) in self._refused:
            self._wanted.discard(name)
            return
        try:
            self._engine.prepare(name, *self._store_of(name).load(number))
        except WeightsRefusedError as error:
            self._refused[name, number] = str(error)
            message, data = f"drafter version {number} refused: {error}", {"version": number}
            if is_own:
                message = f"domain {domain_of(name)!r}: {message}"
            self._on_event(Event(at_s=time.time(), kind="refuse", message=message, data={**data}))
        else:
            self._engine.commit()
        self._wanted.discard(name)

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
