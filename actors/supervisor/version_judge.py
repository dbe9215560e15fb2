"""Carries out on the weight store what the referee decides about drafter versions; the only one that moves its pointer.

consumes: the store's pointer; the engines' reports; an operator's roll backs and pins
waits for: the poll interval
is unblocked by: `close`
on failure: while the store is away, engines serve on what they have; it is read again at the next poll
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping

from actors.process.repeated import Repeated
from osd.config.settings import Config
from osd.fleet.heartbeat import EngineReport
from osd.fleet.referee import Referee, Ruling, Standing
from osd.io.domains.store import open_versions
from osd.io.weight_store import FileWeightStore
from osd.records.drafter_id import domain_of
from osd.records.errors import EngineUnavailableError, WeightsRefusedError
from osd.records.events import Event, EventKind
from osd.records.status import VersionsStatus
from osd.records.version import MERGED, Confirmed, WeightManifest

_log = logging.getLogger(__name__)
_SETTLE_INTERVALS = 4
"""After its start the supervisor judges nothing for so many report intervals, until it has heard of every engine."""


class VersionJudge:
    """The referee of one drafter, with its store. Any thread may call any method.

    Args:
        config: the whole configuration.
        engines: returns the latest report of every engine that is present, on this drafter.
        on_event: called on confirmations, roll backs, pins and failures.
        name: the drafter's; empty: the base drafter's.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        config: Config,
        engines: Callable[[], list[EngineReport]],
        on_event: Callable[[Event], None],
        *,
        name: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config, self._engines, self._on_event, self._clock = config, engines, on_event, clock
        self._name = name or config.drafter.kind
        self._domain = domain_of(self._name)
        self._settled_s = clock() + _SETTLE_INTERVALS * config.cluster.report_interval_s
        self._referee = Referee(config.swap)
        self._lock = threading.Lock()
        """Guards the referee and the figures; held for short moments, never while the store is used."""
        self._acting = threading.Lock()
        """Held by the thread that uses the store."""
        self._store: FileWeightStore | None = None
        self._seen: tuple[int, int] | None = None
        self._standing: Standing | None = None
        self._pinned = ""
        self._merged = ""
        self._marked: Mapping[int, str] | None = None
        """Every version that is marked as rolled back, and the reason."""
        self._hopeless: set[int] = set()
        """Versions on trial that cannot be rolled back."""
        self._num_roll_backs = self._num_manual = 0
        self._looking = Repeated(
            self.look,
            interval_s=config.swap.poll_interval_s,
            name="osd-version-judge",
            what="look for new drafter weights",
        )

    def start(self) -> None:
        """Start the thread that judges."""
        self._looking.start()

    def close(self) -> None:
        """Stop it."""
        self._looking.close()

    def take(self, report: EngineReport) -> None:
        """Take an engine's evidence. The first report says which target's versions are judged."""
        if self._store is None:
            self._store = open_versions(self._config, report.target_id, self._name)
        with self._lock:
            self._referee.take(report)

    def version_for(self, engine_id: str) -> int | None:
        """The version that an engine has to serve; None if that is unknown yet."""
        with self._lock:
            return self._referee.version_for(engine_id)

    @property
    def is_judging(self) -> bool:
        """Whether a version is on trial."""
        return self._referee.trial is not None

    def status(self) -> VersionsStatus:
        """What was decided so far."""
        with self._lock:
            figures = self._referee.figures()
            return VersionsStatus(
                confirmed=self._standing.confirmed if self._standing else None,
                trial=self._referee.trial,
                canaries=tuple(self._referee.canaries),
                pinned=self._pinned,
                merged=self._merged,
                before=figures.get("before", 0.0),
                after=figures.get("after", 0.0),
                rounds_before=int(figures.get("rounds_before", 0)),
                rounds_after=int(figures.get("rounds_after", 0)),
                roll_backs=self._num_roll_backs,
                manual_roll_backs=self._num_manual,
            )

    def roll_back(self, to: int, reason: str) -> WeightManifest:
        """Let every engine serve an older version again, as an operator asks.

        Raises:
            UnknownVersionError: there is no such version.
            WeightsRefusedError: it is the latest, was itself rolled back, is torn, or was refused by an engine.
            EngineUnavailableError: no engine has reported yet.
            OsdError: the store cannot be read or written.
        """
        with self._acting:
            store = self._opened()
            self._check_usable(to)
            version = self._standing.latest if self._standing else to
            restored = store.roll_back(to=to, reason=reason)
            store.confirm(to)
            self._roll_back_done(version, to, f", by hand: {reason}", manual=True)
            self._marked = _marks(store.list())
            self._read(store)
            return restored

    def pin(self, version: int, reason: str) -> None:
        """Let every engine serve this version, whatever is published, until `unpin`; for errors see `roll_back`."""
        with self._acting:
            store = self._opened()
            self._check_usable(version)
            store.confirm(version, pinned=reason or "no reason given")
            self._event("pin", f"drafter version {version} is pinned: {reason}", version=version)
            self._read(store)

    def unpin(self) -> None:
        """Try newer versions again; for errors see `roll_back`."""
        with self._acting:
            store = self._opened()
            confirmed = store.confirmed()
            if confirmed is None or not confirmed.pinned:
                return
            store.confirm(confirmed.version)
            self._event("unpin", f"drafter version {confirmed.version} is pinned no more", version=confirmed.version)
            self._read(store)

    def look(self) -> None:
        """Read the store if it changed, and carry out the referee's ruling if there is one."""
        with self._acting:
            store = self._store
            if store is None:
                return
            if store.changes() != self._seen:
                self._read(store)
            engines = self._engines()
            with self._lock:
                self._referee.assign(engines)
                ruling = self._referee.ruling() if self._clock() >= self._settled_s else None
            if ruling is not None and ruling.version not in self._hopeless:
                self._carry_out(store, ruling)

    def _carry_out(self, store: FileWeightStore, ruling: Ruling) -> None:
        version, reason = ruling.version, ruling.reason
        if ruling.kind == "confirm":
            store.confirm(version)
            self._event("confirm", f"drafter version {version} may serve on every engine: {reason}", version=version)
            self._read(store)
            return
        assert self._standing is not None
        try:
            latest = store.reject(version, reason=reason).number
        except WeightsRefusedError as error:
            self._hopeless.add(version)
            self._event("error", f"drafter version {version} is worse but cannot be rolled back: {error}")
            return
        self._marked = _marks(store.list())
        if ruling.kind == "roll_back":
            to = latest if latest < version else self._standing.confirmed
            self._roll_back_done(version, to, f": {reason}", manual=False)
        else:
            _log.warning("drafter version %d is not served: %s", version, reason)
        self._read(store, rejected=True)

    def _read(self, store: FileWeightStore, *, rejected: bool = False) -> None:
        """Tell the referee what the store says."""
        seen, latest = store.changes(), store.latest()
        if latest is None and self._domain:  # the base drafter serves the domain
            marked = _marks(store.list())
            newest = marked.get(max(marked, default=0), "")
            self._merged = newest.removeprefix(MERGED) if newest.startswith(MERGED) else ""
            self._take(seen, Standing(0, 0), store.confirmed(), marked, rejected=rejected)
            return
        self._merged = ""
        if latest is None:
            return
        manifests = store.list()
        fence = max((one.fence for one in manifests if one.number < latest.number), default=0)
        if latest.fence < fence and latest.fence and not rejected:
            reason = f"published by a distiller that had lost its lease (fence {latest.fence}, another had {fence})"
            self._event("refuse", f"drafter version {latest.number} is {reason}", version=latest.number)
            if self._marked is not None:
                self._marked = {**self._marked, latest.number: reason}
            latest = store.reject(latest.number, reason=reason)
            manifests = store.list()
        confirmed, first = store.confirmed(), 0 if self._domain else latest.number
        if confirmed is None and first:  # a new store, or the confirmed version was rolled back in another process
            store.confirm(first)
        standing = Standing(
            latest.number, confirmed.version if confirmed else first, bool(confirmed and confirmed.pinned)
        )
        self._take(seen, standing, confirmed, _marks(manifests), rejected=rejected)

    def _take(
        self,
        seen: tuple[int, int],
        standing: Standing,
        confirmed: Confirmed | None,
        marked: dict[int, str],
        *,
        rejected: bool,
    ) -> None:
        """Take what the store says; see `_read`."""
        self._report_roll_backs_elsewhere(marked, standing.confirmed)
        with self._lock:
            self._standing, self._pinned = standing, confirmed.pinned if confirmed else ""
            (self._referee.rejected if rejected else self._referee.stand)(standing)
        self._seen = seen

    def _report_roll_backs_elsewhere(self, marked: dict[int, str], to: int) -> None:
        """Count and report roll backs that another process made, as `osd drafter rollback` does."""
        known = marked if self._marked is None else self._marked
        # A roll back marks every version that it passes over with the same reason; the newest is the one that served.
        newest_by_reason = {marked[version]: version for version in sorted(marked.keys() - known.keys())}
        for why, version in newest_by_reason.items():
            if why.startswith(MERGED):
                continue  # the trainer tells of it
            self._roll_back_done(version, to, f", by hand: {why}", manual=True)
        self._marked = marked

    def _roll_back_done(self, version: int, to: int, why: str, *, manual: bool) -> None:
        with self._lock:
            self._num_roll_backs += 1
            self._num_manual += manual
        self._event("roll_back", f"drafter version {version} -> {to}{why}", version=version, to=to, manual=int(manual))

    def _check_usable(self, version: int) -> None:
        with self._lock:
            refusal = self._referee.refusal(version)
        if refusal:
            raise WeightsRefusedError(f"version {version} was refused by {refusal}")

    def _opened(self) -> FileWeightStore:
        if self._store is None:
            raise EngineUnavailableError("no engine has reported yet; try again shortly")
        return self._store

    def _event(self, kind: EventKind, message: str, **data: int) -> None:
        message = f"domain {self._domain!r}: {message}" if self._domain else message
        self._on_event(Event(at_s=time.time(), kind=kind, message=message, data=dict(data)))


def _marks(manifests: Iterable[WeightManifest]) -> dict[int, str]:
    return {manifest.number: manifest.rolled_back for manifest in manifests if manifest.rolled_back}
