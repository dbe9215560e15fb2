"""Hot swap: watches the weight store, loads and prepares a version beside the old one, swaps it in between two steps.

consumes: the store's `latest` pointer; regressions that the engine reports; roll-backs by hand, seen in the manifests
waits for: the poll interval
is unblocked by: a reported regression, `stop`
on failure: a version that is torn or does not fit is refused once, with the reason; the old one serves on
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from osd.engine.loop import EngineLoop
from osd.ports.weight_store import WeightStore
from osd.records.errors import OsdError, WeightsRefusedError
from osd.records.events import Event, EventKind

_log = logging.getLogger(__name__)


class HotSwap:
    """Keeps the engine's drafter at the store's latest sound version.

    Args:
        store: where versions appear.
        loop: the engine.
        serving: the version the engine serves now.
        poll_interval_s: how often the store is looked at.
        on_event: told of refusals and roll-backs.
    """

    def __init__(
        self,
        store: WeightStore,
        loop: EngineLoop,
        *,
        serving: int,
        poll_interval_s: float,
        on_event: Callable[[Event], None],
    ) -> None:
        self._store, self._loop, self._on_event = store, loop, on_event
        self._poll_interval_s = poll_interval_s
        self._serving = serving
        self._refused: dict[int, str] = {}
        self._rolled_back = self._marked_versions()
        self._regression: tuple[int, str] | None = None
        self._is_asked = False
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="osd-hot-swap", daemon=True)

    def start(self) -> None:
        """Start watching."""
        self._thread.start()

    def stop(self) -> None:
        """Stop watching."""
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()

    def report_regression(self, version: int, reason: str) -> None:
        """The engine found that a swapped-in version is accepted less; called on the engine's thread."""
        self._regression = (version, reason)
        self._wake.set()

    def wake(self) -> None:
        """Look at the store now instead of at the next poll: a version was published or rolled back."""
        self._is_asked = True
        self._wake.set()

    def refusal(self, number: int) -> str | None:
        """Why the engine refused a version; None where it did not."""
        return self._refused.get(number)

    def check_now(self) -> None:
        """Look at the store once, in the caller's thread."""
        if (regression := self._regression) is not None:
            self._roll_back(*regression)
            if self._regression is regression:  # only now: a disk that refused it is asked again
                self._regression = None
        manifest = self._store.latest()
        if manifest is None:
            return
        if self._is_asked or manifest.number != self._serving:
            self._is_asked = False
            self._report_manual_roll_backs(manifest.number)
        if manifest.number == self._serving or manifest.number in self._refused:
            return
        try:
            manifest, state = self._store.load(manifest.number)
            with self._loop.changing:
                drafter = self._loop.call(lambda engine: engine.drafter).result()
                assert drafter is not None
                swap_in = drafter.prepare(state, manifest.number)  # not between two steps, where every row would wait
                # Going back to an older version undoes a swap; judging that against the newer one would make no sense.
                watch = manifest.number > self._serving
                self._loop.call(lambda engine: engine.load_drafter(manifest, swap_in, watch=watch)).result()
        except WeightsRefusedError as error:
            self._refused[manifest.number] = str(error)
            self._event("refuse", f"drafter version {manifest.number} refused: {error}", version=manifest.number)
            return
        self._serving = manifest.number

    def _roll_back(self, version: int, reason: str) -> None:
        latest = self._store.latest()
        try:
            if latest is not None and latest.number in self._refused:
                latest = self._store.roll_back(reason="refused by the engine")  # it would shield the one below it
            if latest is None or latest.number != version:
                return  # something newer was published meanwhile, and will be judged itself
            restored = self._store.roll_back(reason=reason)
        except WeightsRefusedError as error:
            self._event("error", f"drafter version {version} is worse but cannot be rolled back: {error}")
            return
        finally:
            self._rolled_back = self._marked_versions()
        self._report_roll_back(version, restored.number, f": {reason}", manual=False)

    def _report_manual_roll_backs(self, to: int) -> None:
        """Count and report what was rolled back since the last look; roll-backs of our own are known already."""
        marked = self._marked_versions()
        # One roll back marks every version that it passes over, with one reason: the newest is the one that served.
        newest_by_reason = {marked[version]: version for version in sorted(marked.keys() - self._rolled_back.keys())}
        for why, version in newest_by_reason.items():
            self._report_roll_back(version, to, f", by hand: {why}", manual=True)
        self._rolled_back = marked

    def _marked_versions(self) -> dict[int, str]:
        """Every version that is marked as rolled back, and why."""
        return {manifest.number: manifest.rolled_back for manifest in self._store.list() if manifest.rolled_back}

    def _report_roll_back(self, version: int, to: int, why: str, *, manual: bool) -> None:
        self._loop.call(lambda engine: engine.counters.add_roll_back(manual=manual))
        self._event("roll_back", f"drafter version {version} -> {to}{why}", version=version, to=to)

    def _run(self) -> None:
        trouble = ""
        while not self._stopping.is_set():
            try:
                self.check_now()
                trouble = ""
            except OsdError as error:  # the store is away: said once, and the version in use serves on
                if str(error) != trouble:
                    _log.warning("cannot look for new drafter weights: %s", error)
                trouble = str(error)
            except Exception:
                _log.exception("looking for new drafter weights failed; trying again")
            self._wake.wait(self._poll_interval_s)
            self._wake.clear()

    def _event(self, kind: EventKind, message: str, **data: int) -> None:
        self._on_event(Event(at_s=time.time(), kind=kind, message=message, data=dict(data)))
