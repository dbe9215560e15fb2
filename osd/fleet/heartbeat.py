"""What engines, the distiller and the supervisor tell each other about once a second."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import NamedTuple

from osd.monitor.buckets import Figures, Series
from osd.records.drafter_id import DrafterId, drafter_name
from osd.records.status import TrainerStatus


class QueryRounds(NamedTuple):
    """First-token acceptance of one query under one drafter version."""

    version: int
    query: str
    num_rounds: int
    """Rounds with at least one proposed token; only the first few of a query count."""
    num_accepted: int
    """Those of `num_rounds` whose first proposed token was accepted."""
    domain: str = ""
    """The query's domain."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainReport:
    """What an engine says of a domain's own drafter."""

    version: int = 0
    """In use now; 0: none is in memory, so the base drafter serves the domain."""
    rounds: tuple[QueryRounds, ...] = ()
    refused: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineReport:
    """From an engine to the supervisor.

    Counts are totals rather than differences, so a report may be lost or arrive twice. A report contains those that
    changed since the last one that was answered, or all of them (`is_full`).
    """

    engine_id: str
    incarnation: str
    """Of the engine's process: a restarted engine has the same id and another incarnation."""
    number: int
    """The report's number, counted from 0 in each incarnation."""
    is_full: bool
    at_s: float
    """When it was made, by the wall clock of the engine's node. Only compared with the supervisor's clock, to warn."""
    node: str
    device: str
    """`cpu`, or the unique id of the GPU; with `node` it says which processes share a device."""
    pid: int
    target_id: str
    drafter: DrafterId
    """That serves now, of the kind that learns."""
    utilisation: float
    """Share of the last seconds that the engine was in steps, 0 to 1."""
    running: int
    waiting: int
    free_rows: int
    paused_s: float
    """Seconds that the engine has paused for training, in total."""
    device_used_bytes: int = 0
    """Of the device's memory, or on a CPU the node's, what any process uses."""
    device_bytes: int = 0
    """All of it; 0: not known."""
    uptime_s: float = 0.0
    """Since the engine of this process was made."""
    outcomes_dropped: int = 0
    """Outcomes lost so far, since the stream could not take them."""
    served: tuple[tuple[Series, Figures], ...] = ()
    """Totals for the operator's history since the engine's process started."""
    rounds: tuple[QueryRounds, ...] = ()
    """Evidence for the referee."""
    refused: dict[int, str] = field(default_factory=dict)
    """Drafter versions that the engine could not use, and why."""
    domains: dict[str, DomainReport] = field(default_factory=dict)
    """Of domains with a drafter of their own; `drafter`, `rounds` and `refused` are of the base drafter."""

    def of_domain(self, domain: str) -> EngineReport:
        """The report on a domain's own drafter. The base drafter's rounds in the domain count as those of version 0."""
        own = self.domains.get(domain, DomainReport())
        before = tuple(one._replace(version=0) for one in self.rounds if one.domain == domain)
        return replace(
            self,
            drafter=DrafterId(drafter_name(self.drafter.name, domain), own.version),
            rounds=before + own.rounds,
            refused=own.refused,
            domains={},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOrders:
    """From the supervisor to an engine, in answer to its report. They hold until the next ones."""

    session: str
    """Of the supervisor's process. One that was restarted knows nothing, so the next report must be full."""
    version: int | None = None
    """The base drafter's version to serve; None: as it is."""
    is_judged: bool = False
    """Versions of it are being compared, so propose at least one token where that adds evidence."""
    domain_versions: dict[str, int] = field(default_factory=dict)
    """By domain, the version of its own drafter to serve; 0: the base drafter serves it."""
    judged_domains: frozenset[str] = frozenset()
    """Domains whose own drafters' versions are being compared."""
    training_share: float = 0.0
    """Share of its time that the engine leaves to training."""
    record_share: float = 1.0
    """Share of the queries whose outcomes are recorded."""
    draining: bool = False
    """Take no new queries; the engine is going to be stopped."""
    lengths: dict[str, int] = field(default_factory=dict)
    """Domain to the speculation length of its queries, where the operator fixed one."""
    drifting: tuple[str, ...] = ()
    """Domains whose acceptance drifts, `*` for all traffic: prefer the lookup there until a better version serves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillerReport:
    """From the distiller to the supervisor."""

    node: str
    device: str
    """As in `EngineReport`; empty while it is not known, which stands for any device of the node."""
    wanted_share: float
    """Share of a busy engine's time that training is worth now."""
    is_paused: bool
    """As the distiller has it; a supervisor that was restarted takes it over."""
    status: TrainerStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillerOrders:
    """From the supervisor to the distiller, in answer to its report."""

    utilisation: float
    """Utilisation of the busiest engine on the same device; 0 if there is none."""
    share: float
    """Share of their time that busy engines on this device leave to training."""
    is_paused: bool
    """Whether the operator paused training."""
