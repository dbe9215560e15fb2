"""Judges the versions of domains' own drafters, each domain's for itself.

consumes: the list of domains with a drafter of their own; the engines' reports
waits for: the poll interval
is unblocked by: `close`
on failure: while the store is away, engines serve on what they have; it is read again at the next poll
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace

from actors.process.repeated import Repeated
from actors.supervisor.version_judge import VersionJudge
from osd.config.settings import Config
from osd.fleet.heartbeat import EngineOrders, EngineReport
from osd.io.domains.listed import MAX_DOMAINS, DomainList, open_domains
from osd.records.drafter_id import drafter_name
from osd.records.errors import EngineUnavailableError, UnknownVersionError
from osd.records.events import Event
from osd.records.status import VersionsStatus


class DomainJudges:
    """A `VersionJudge` for each domain that has, or may get, a drafter of its own.

    A domain's first version is on trial like any other: it is compared with the base drafter's rounds in that domain,
    which are therefore remembered from the first one on.

    Args:
        config: the whole configuration.
        engines: returns the latest report of every engine that is present.
        on_event: see `VersionJudge`.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        config: Config,
        engines: Callable[[], list[EngineReport]],
        on_event: Callable[[Event], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config, self._engines, self._on_event, self._clock = config, engines, on_event, clock
        self._lock = threading.Lock()
        """Guards what follows."""
        self._judges: dict[str, VersionJudge] = {}
        self._listed: tuple[str, ...] = ()
        """Domains that have a drafter of their own."""
        self._list: DomainList | None = None
        self._looking = Repeated(
            self.look,
            interval_s=config.swap.poll_interval_s,
            name="osd-domain-judges",
            what="look for new drafter weights of domains",
        )

    def start(self) -> None:
        """Start the thread that judges."""
        self._looking.start()

    def close(self) -> None:
        """Stop it."""
        self._looking.close()

    def take(self, report: EngineReport) -> None:
        """Take an engine's evidence."""
        domains = dict.fromkeys((*report.domains, *(one.domain for one in report.rounds if one.domain)))
        with self._lock:
            if self._list is None:
                self._list = open_domains(self._config, report.target_id)
            judges = {domain: self._judge(domain) for domain in dict.fromkeys((*self._listed, *domains))}
        for domain, judge in judges.items():
            if judge is not None:
                judge.take(report.of_domain(domain))

    def ordered(self, orders: EngineOrders, engine_id: str) -> EngineOrders:
        """The orders with the version that an engine has to serve in each of these domains."""
        judges = self._known()
        versions = {domain: judge.version_for(engine_id) for domain, judge in judges.items()}
        return replace(
            orders,
            domain_versions={domain: version for domain, version in versions.items() if version is not None},
            judged_domains=frozenset(domain for domain, judge in judges.items() if judge.is_judging),
        )

    def of(self, domain: str) -> VersionJudge:
        """The judge of a domain's own drafter.

        Raises:
            UnknownVersionError: the domain has none.
            EngineUnavailableError: it was not looked for yet.
        """
        if self._list is None:
            raise EngineUnavailableError("no engine has reported yet; try again shortly")
        judge = self._known().get(domain)
        if judge is None:
            raise UnknownVersionError(f"domain {domain!r} has no drafter of its own; the base drafter serves it")
        return judge

    def status(self) -> dict[str, VersionsStatus]:
        """What was decided so far, by domain."""
        return {domain: judge.status() for domain, judge in self._known().items()}

    def look(self) -> None:
        """Look for domains that have got a drafter, and let each domain's judge look at its store.

        Raises:
            OsdError: a store cannot be read or written.
        """
        if self._list is None:
            return
        listed = self._list.read()
        with self._lock:
            self._listed = listed
            judges = [judge for domain in listed if (judge := self._judge(domain)) is not None]
        for judge in judges:
            judge.look()

    def _known(self) -> dict[str, VersionJudge]:
        with self._lock:
            return {domain: self._judges[domain] for domain in self._listed if domain in self._judges}

    def _judge(self, domain: str) -> VersionJudge | None:
        """A domain's judge; None where there are too many. Domains with a drafter take the place of those without."""
        if domain not in self._judges:
            if len(self._judges) >= MAX_DOMAINS:
                free = next((one for one in self._judges if one not in self._listed), None)
                if free is None or domain not in self._listed:
                    return None
                del self._judges[free]
            self._judges[domain] = VersionJudge(
                self._config,
                lambda: self._present(domain),
                self._on_event,
                name=drafter_name(self._config.drafter.kind, domain),
                clock=self._clock,
            )
        return self._judges[domain]

    def _present(self, domain: str) -> list[EngineReport]:
        return [report.of_domain(domain) for report in self._engines()]
