"""Hot swap: watches the weight store, prepares a new version beside the serving one, and swaps it in between two steps.

consumes: the store's `latest` pointer; the engine's acceptance figures; roll backs by hand, seen in the manifests
waits for: the poll interval
is unblocked by: `wake`, `stop`
on failure: a version that is damaged or does not fit is refused once, with the reason; the old one continues to serve
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from osd.ports.swap import SwapPort
from osd.ports.weight_store import WeightStore
from osd.records.acceptance_figures import AcceptanceFigures
from osd.records.drafter_id import DrafterId
from osd.records.errors import OsdError, WeightsRefusedError
from osd.records.events import Event, EventKind

_log = logging.getLogger(__name__)


class HotSwap:
    """Keeps one drafter of an engine at the store's latest intact version.

    Args:
        store: where versions are published.
        engine: serves the drafter.
        poll_interval_s: interval at which store and acceptance figures are read.
        on_event: called on refusals and roll backs.
    """

    def __init__(
        self,
        store: WeightStore,
        engine: SwapPort,
        *,
        poll_interval_s: float,
        on_event: Callable[[Event], None],
    ) -> None:
        self._store, self._engine, self._on_event = store, engine, on_event
        self._poll_interval_s = poll_interval_s
        self._refused: dict[int, str] = {}
        self._rolled_back = self._marked_versions()
        self._judged: DrafterId | None = None
        """The last version that was found worse and rolled back."""
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

    def wake(self) -> None:
        """Read the store now instead of at the next poll, since a version was published or rolled back."""
        self._is_asked = True
        self._wake.set()

    def refusal(self, number: int) -> str | None:
        """Why the engine refused a version; None if it did not."""
        return self._refused.get(number)

    def check_now(self) -> None:
        """Read the store once, in the caller's thread."""
        figures = self._engine.figures()
        is_news = figures.verdict == "worse" and figures.drafter != self._judged
        if is_news and self._roll_back(figures):
            self._judged = figures.drafter
        manifest, serving = self._store.latest(), figures.drafter
        if manifest is None:
            return
        if self._is_asked or manifest.number != serving.version:
            self._is_asked = False
            self._report_manual_roll_backs(manifest.number)
        if manifest.number == serving.version or manifest.number in self._refused:
            return
        try:
            manifest, state = self._store.load(manifest.number)
            self._engine.prepare(manifest, state)
        except WeightsRefusedError as error:
            self._refused[manifest.number] = str(error)
            self._event("refuse", f"drafter version {manifest.number} refused: {error}", version=manifest.number)
            return
        # A swap to an older version is a roll back, and is not compared with the newer version.
        self._engine.commit(watch=manifest.number > serving.version)
        self._judged = None

    def _roll_back(self, figures: AcceptanceFigures) -> bool:
        """Roll back to the version before; False if that is postponed because a newer version is still to be tried."""
        version = figures.drafter.version
        reason = f"first-token acceptance fell from {figures.before:.2f} to {figures.after:.2f} after the swap"
        latest = self._store.latest()
        try:
            if latest is not None and latest.number in self._refused:
                latest = self._store.roll_back(reason="refused by the engine")  # it must not stay the latest
            if latest is None or latest.number != version:
                return False
            restored = self._store.roll_back(reason=reason)
        except WeightsRefusedError as error:
            self._event("error", f"drafter version {version} is worse but cannot be rolled back: {error}")
            return True
        finally:
            self._rolled_back = self._marked_versions()
        self._report_roll_back(version, restored.number, f": {reason}", manual=False)
        return True

    def _report_manual_roll_backs(self, to: int) -> None:
        """Count and report roll backs since the last call that were not made by this object."""
        marked = self._marked_versions()
        # A roll back marks every version that it passes over with the same reason; the newest is the one that served.
        newest_by_reason = {marked[version]: version for version in sorted(marked.keys() - self._rolled_back.keys())}
        for why, version in newest_by_reason.items():
            self._report_roll_back(version, to, f", by hand: {why}", manual=True)
        self._rolled_back = marked

    def _marked_versions(self) -> dict[int, str]:
        """Every version that is marked as rolled back, and the reason."""
        return {manifest.number: manifest.rolled_back for manifest in self._store.list() if manifest.rolled_back}

    def _report_roll_back(self, version: int, to: int, why: str, *, manual: bool) -> None:
        self._engine.count_roll_back(manual=manual)
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
