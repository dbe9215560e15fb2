"""What the supervisor decides for all engines: versions, room for training, what is recorded."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace

from actors.supervisor.domain_judges import DomainJudges
from actors.supervisor.stream_keeper import StreamKeeper
from actors.supervisor.version_judge import VersionJudge
from osd.config.settings import Config
from osd.fleet.clock_skew import ClockSkew
from osd.fleet.engines import Engines
from osd.fleet.heartbeat import DistillerOrders, DistillerReport, EngineOrders, EngineReport
from osd.fleet.spare import SpareCompute
from osd.records.errors import EngineUnavailableError, UnknownVersionError
from osd.records.events import Event
from osd.records.status import FleetStatus, VersionsStatus

_SETTLE_S = 5.0
"""Time after the supervisor's start by which every engine has reported."""


class Fleet:
    """The engines as they report, and the orders that they get.

    Args:
        config: the whole configuration; None: no drafter versions are judged.
        redis_url: the Redis of the outcome stream; empty: none.
        cluster: address of the Ray cluster; empty: a local Ray.
        on_event: called with decisions and problems.
    """

    def __init__(self, config: Config | None, redis_url: str, cluster: str, on_event: Callable[[Event], None]) -> None:
        self._on_event = on_event
        self._lock = threading.Lock()
        """Guards the reports."""
        self._engines = engines = Engines()
        self._spare = SpareCompute((config or Config()).trainer)
        self._settled_s = time.monotonic() + _SETTLE_S
        self._skew = ClockSkew()
        self._judge = VersionJudge(config, self.engines, on_event) if config else None
        if self._judge is not None:
            self._judge.start()
        self._domains = None
        if config and config.drafter.max_domains:
            self._domains = DomainJudges(config, self.engines, on_event)
            self._domains.start()
        self._keeper = None
        if config and redis_url:
            self._keeper = StreamKeeper(
                config, redis_url, on_event, cluster, outcomes_dropped=lambda: engines.outcomes_dropped
            )

    def take(self, report: EngineReport, orders: EngineOrders) -> EngineOrders:
        """Take an engine's report.

        Returns:
            `orders` with the version to serve and the shares of training and recording filled in.
        """
        with self._lock:
            self._engines.take(report)
            share = self._spare.share_for(report)
            skew = self._skew.take(report.engine_id, report.at_s - time.time())
        if skew:
            self._on_event(Event(at_s=time.time(), kind="error", message=skew))
        record_share = self._keeper.status().record_share if self._keeper is not None else 1.0
        orders = replace(orders, training_share=share, record_share=record_share)
        if self._judge is None:
            return orders
        self._judge.take(report)
        version = self._judge.version_for(report.engine_id)
        orders = replace(orders, version=version, is_judged=self._judge.is_judging)
        if self._domains is None:
            return orders
        self._domains.take(report)
        return self._domains.ordered(orders, report.engine_id)

    def take_distiller(self, report: DistillerReport, is_paused: bool) -> DistillerOrders:
        """Take the distiller's report; returns its orders."""
        with self._lock:
            utilisation = self._spare.take(report, self._engines.present())
            if time.monotonic() < self._settled_s and not self._spare.has_neighbours:
                utilisation = 1.0  # engines may not have reported yet
            return DistillerOrders(utilisation=utilisation, share=self._spare.granted(), is_paused=is_paused)

    def engines(self) -> list[EngineReport]:
        """The latest report of every engine that is present, by engine id."""
        with self._lock:
            return self._engines.present()

    def status(self) -> FleetStatus:
        """The versions, the room for training and the stream, as the admin page shows them."""
        with self._lock:
            spare = self._spare.status()
        return FleetStatus(
            versions=self._judge.status() if self._judge is not None else VersionsStatus(),
            spare=spare,
            stream=self._keeper.status() if self._keeper is not None else None,
            domains=self._domains.status() if self._domains is not None else {},
        )

    def judge(self, domain: str = "") -> VersionJudge:
        """The judge of the versions of a domain's own drafter, or of the base drafter.

        Raises:
            EngineUnavailableError: no drafter versions are judged.
            UnknownVersionError: the domain has no drafter of its own.
        """
        if self._judge is None:
            raise EngineUnavailableError("this service has no drafter versions")
        if not domain:
            return self._judge
        if self._domains is None:
            raise UnknownVersionError("no domain has a drafter of its own: drafter.max_domains is 0")
        return self._domains.of(domain)

    def close(self) -> None:
        """Stop the threads of the judges and of the stream's keeper."""
        for part in (self._judge, self._domains, self._keeper):
            if part is not None:
                part.close()
