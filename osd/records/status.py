"""Snapshots for `/health`, `/metrics` and the admin page."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

TrainerState = Literal["off", "waiting_for_data", "training", "yielding", "paused", "stopped"]
"""`off`: training is disabled in the configuration."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptancePoint:
    """One finished query on the acceptance chart."""

    query: int
    """Running number of the query since the engine started."""
    at_s: float
    domain: str
    drafter_version: int
    """With `drafter_name`, the version that proposed last; 0 if nothing was proposed."""
    rounds: int
    proposed: int
    accepted: int
    committed: int
    output_tokens: int
    decode_ms: float
    drafter_name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrafterCounts:
    """The counts of one drafter version's proposals."""

    name: str
    version: int
    rounds: int
    proposed: int
    accepted: int
    committed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedCounts:
    """The totals of one domain and drafter version since the engine started."""

    domain: str
    drafter: str
    """Empty for plain rounds, and for what is counted by query."""
    version: int
    figures: dict[str, float]
    """By the names in osd/monitor/buckets.py."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStatus:
    """A snapshot of the engine for `/health`, `/metrics` and the admin page. Counters only ever grow."""

    target: str
    drafter_kind: str
    """The name of the first drafter, which is the one that learns; "none" if there is none."""
    drafter_version: int
    """The first drafter's version."""
    running: int
    waiting: int
    max_slots: int
    context_tokens: int
    utilisation: float
    """Share of the last seconds that the engine spent in steps, 0 to 1."""
    speculation_length: int
    """The length chosen for the latest round."""
    speculation_enabled: bool
    uptime_s: float
    running_tokens: int = 0
    """Tokens whose keys and values are held for queries under way; there is room for `max_slots * context_tokens`."""
    kept_tokens: int = 0
    """The same of ended queries, kept for those that begin alike until the row is needed."""
    computes: str = ""
    """How passes are computed, such as `CPU: AVX2, bfloat16 weights widened in registers`."""
    context: str = ""
    """How long a query may be, and why, such as `context 8192 tokens: the model's own`."""
    counters: dict[str, float] = field(default_factory=dict)
    """Name to monotone count, as listed in osd/meters/counters.py and osd/io/recorder.py."""
    acceptance_by_version: dict[int, dict[str, int]] = field(default_factory=dict)
    """For the first drafter: version to {rounds, proposed, accepted, committed}."""
    drafters: tuple[DrafterCounts, ...] = ()
    """The counts of every drafter and version that has proposed."""
    served: tuple[ServedCounts, ...] = ()


ALL_TRAFFIC = "*"
"""Stands for all domains together: a shift from one domain to another is none within either."""
DriftState = Literal["stable", "warning", "drift"]
"""`warning`: recent queries may differ from those before; `drift`: they do, and no better version was published yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainDrift:
    """Whether a domain's acceptance has changed.

    Example: `DomainDrift(state="drift", queries=14, before=0.53, recent=0.36)`
    """

    state: DriftState
    queries: int
    """Number of queries in the window that was judged: those since the warning."""
    before: float
    """Share of rounds whose first proposed token was accepted, of the queries that the window was compared with; 0 if
    there was no warning."""
    recent: float
    """The same of the window."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainTraining:
    """The training of a domain's own drafter."""

    state: TrainerState
    steps: int
    records: int
    """Outcomes of the domain that are remembered, held-out ones included."""
    published_version: int
    """0: none has beaten the base drafter yet."""
    gate: dict[str, float]
    """The latest decision of the gate; see `TrainerStatus`."""
    against_base: dict[str, float] = field(default_factory=dict)
    """Of the latest comparison of the domain's drafter with the base drafter; see `trainer.gate.split_watch`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerStatus:
    """A snapshot of the distiller for the admin page."""

    state: TrainerState
    steps: int = 0
    trained_tokens: int = 0
    training_s: float = 0.0
    """Seconds that this process has spent in training steps and gate comparisons, without waits for the engine."""
    loss: float | None = None
    learning_rate: float = 0.0
    worth: float = 1.0
    """Share of `trainer.max_serving_cost` that the engine is asked for while it is busy: 1 while candidates
    gain, half as much after each that gains nothing."""
    replay_records: int = 0
    replay_bytes: int = 0
    held_out_records: int = 0
    published_version: int = 0
    gate: dict[str, float] = field(default_factory=dict)
    """The figures of the latest gate decision; see `trainer.gate.gate.GateDecision`."""
    stream_lag: int | None = None
    """Outcomes recorded but not yet read; None if Redis cannot be reached."""
    drift: dict[str, DomainDrift] = field(default_factory=dict)
    """By domain; `*` stands for all traffic."""
    domains: dict[str, DomainTraining] = field(default_factory=dict)
    """Of domains for which a drafter of their own is trained; steps, tokens and time above include it."""
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionsStatus:
    """What the referee decided about drafter versions. Counters only ever grow."""

    confirmed: int | None = None
    """The version that every engine may serve; None until the store was read."""
    trial: int | None = None
    """The version that the canaries try."""
    canaries: tuple[str, ...] = ()
    """Ids of the engines that serve the version on trial."""
    merged: str = ""
    """Of a domain that the base drafter serves since it became as good as the domain's own: the figures."""
    pinned: str = ""
    """Why the operator keeps `confirmed` in service whatever is published; empty if not."""
    before: float = 0.0
    """First-token acceptance of the version that the one on trial is compared with."""
    after: float = 0.0
    """First-token acceptance of the version on trial."""
    rounds_before: int = 0
    rounds_after: int = 0
    roll_backs: int = 0
    """Versions rolled back, by the referee or by hand."""
    manual_roll_backs: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SpareStatus:
    """What training takes, and what it costs serving, over about the last minute."""

    neighbours: tuple[str, ...] = ()
    """Ids of the engines that share the distiller's device."""
    utilisation: float = 0.0
    """Utilisation of the busiest of them, 0 to 1."""
    share: float = 0.0
    """Share of their time that busy neighbours leave to training now."""
    training: float = 0.0
    """Share of the time that the distiller trained."""
    serving_cost: float = 0.0
    """Share of its time that the neighbour which paused most paused for training while it had work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamStatus:
    """The outcome stream as all engines write to it."""

    bytes_per_s: float = 0.0
    """Written lately."""
    record_share: float = 1.0
    """Share of the queries that engines record, so that `outcomes.max_bytes_per_s` is kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetStatus:
    """What the supervisor decided for all engines."""

    versions: VersionsStatus = VersionsStatus()
    spare: SpareStatus | None = None
    """None: the distiller does not report."""
    stream: StreamStatus | None = None
    """None: nothing is recorded."""
    domains: dict[str, VersionsStatus] = field(default_factory=dict)
    """By domain with a drafter of its own; `confirmed` 0 means that the base drafter serves it."""
    events: dict[str, int] = field(default_factory=dict)
    """Kind to number of events since the supervisor began."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceStatus:
    """The status of the whole service."""

    ready: bool
    engine: EngineStatus | None
    trainer: TrainerStatus | None
    """None: it is configured, but does not answer."""
    versions: VersionsStatus | None = None
    """None: the supervisor does not answer."""
    spare: SpareStatus | None = None
    """None: the supervisor does not answer, or the distiller does not report."""
    stream: StreamStatus | None = None
    """None: the supervisor does not answer, or nothing is recorded."""
    domains: dict[str, VersionsStatus] = field(default_factory=dict)
    """Versions of domains' own drafters, by domain; 0 stands for the base drafter."""
    restarts: dict[str, int] = field(default_factory=dict)
    """Actor name to number of restarts; `ray`: of all of Ray, with every actor."""
    processes: dict[str, int] = field(default_factory=dict)
    """Process name to resident bytes."""
    events: dict[str, int] = field(default_factory=dict)
    """Kind to number of events since the supervisor began."""
