"""The records that pass between the parts. Imports nothing of ours.

Vocabulary (docs/structure.md): a *round* is one propose and one verify; of the tokens *proposed* by the drafter some
are *accepted*; each round also yields one *recovered* token (drawn from the residual at the first rejection) or one
*bonus* token (when all were accepted); *committed* = accepted + recovered or bonus. The token that the prefill itself
yields belongs to no round.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

FinishReason = Literal["stop", "length", "cancelled", "error"]
TrainerState = Literal["off", "waiting_for_data", "training", "yielding", "paused", "stopped"]
"""`off`: the configuration says not to train."""
AcceptRule = Literal["token", "block"]
"""How sampled proposals are judged: token-wise rejection (`osd.rejection`) or block verification."""
NOT_FINITE = "the model's output for it is not finite (NaN or infinity)"
"""Why a query ended with an error, as its last delta says it."""
EventKind = Literal["publish", "refuse", "swap", "roll_back", "restart", "pause", "resume", "kernels", "error"]


class OsdError(Exception):
    """An error whose message is meant for the person who can mend it: what is wrong, and what to do."""


class QueueFullError(OsdError):
    """The engine's waiting queue is full; serving answers 429 with Retry-After."""


class PromptTooLongError(OsdError):
    """The prompt leaves no room for a single new token in the target's context."""


class EngineUnavailableError(OsdError):
    """The engine is restarting or gone; serving answers 503."""


class WeightsRefusedError(OsdError):
    """A weight version is torn, foreign, non-finite or of another shape, and was not loaded."""


class UnknownVersionError(WeightsRefusedError):
    """There is no weight version of this number."""


class OutcomeSinkError(OsdError):
    """The outcome stream cannot take or give records now (Redis down, full or refusing)."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How one query's tokens are drawn from the target. `ValueError` names the field that is out of range."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps the whole vocabulary."""
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    max_tokens: int = 128
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    """None: none; n: the chosen token's log-probability and those of the n most likely tokens."""
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        _require(0.0 <= self.temperature <= 2.0, "temperature must be between 0 and 2")
        _require(0.0 < self.top_p <= 1.0, "top_p must be above 0 and at most 1")
        _require(self.top_k >= 0, "top_k must be 0 (off) or a positive number")
        _require(0.0 <= self.min_p <= 1.0, "min_p must be between 0 and 1")
        _require(-2.0 <= self.presence_penalty <= 2.0, "presence_penalty must be between -2 and 2")
        _require(-2.0 <= self.frequency_penalty <= 2.0, "frequency_penalty must be between -2 and 2")
        _require(self.max_tokens >= 1, "max_tokens must be at least 1")
        _require(len(self.stop) <= 4 and all(self.stop), "stop takes at most 4 strings, none of them empty")
        _require(self.logprobs is None or 0 <= self.logprobs <= 20, "logprobs must be between 0 and 20")

    @property
    def is_greedy(self) -> bool:
        """True when the target's most likely token is taken."""
        return self.temperature == 0.0

    @property
    def has_penalties(self) -> bool:
        """True when earlier output changes the distribution."""
        return self.presence_penalty != 0.0 or self.frequency_penalty != 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One query, as the engine takes it.

    `resume_ids` and `resume_chars` continue a query on another engine: the output tokens and the number of characters
    of output text that the client already has.

    Example: `Request(request_id="r-1", prompt_ids=(1, 2, 3), params=SamplingParams(temperature=0.0, max_tokens=16))`
    """

    request_id: str
    prompt_ids: tuple[int, ...]
    params: SamplingParams = field(default_factory=SamplingParams)
    domain: str = "default"
    store: bool = True
    """False: nothing of this query is recorded but counters."""
    speculation_length: int | None = None
    """None: chosen by goodput; a number fixes it for this query (0 = plain decoding)."""
    resume_ids: tuple[int, ...] = ()
    resume_chars: int = 0


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The target's own log-probability (before temperature and filters) of one emitted token."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    """(token id, log-probability) of the most likely tokens, best first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryStats:
    """What one query cost and gained. Acceptance rate = accepted / proposed; acceptance length = committed / rounds."""

    prompt_tokens: int = 0
    reused_tokens: int = 0
    """Of the prompt, what the target had read for another query already."""
    output_tokens: int = 0
    rounds: int = 0
    proposed: int = 0
    accepted: int = 0
    committed: int = 0
    drafter_version: int = 0
    """The version that proposed last."""
    drafter_versions: tuple[int, ...] = ()
    """Every version that proposed for this query, in order."""
    queue_ms: float = 0.0
    prefill_ms: float = 0.0
    draft_ms: float = 0.0
    verify_ms: float = 0.0
    total_ms: float = 0.0


class TokenDelta(msgspec.Struct, frozen=True, kw_only=True):
    """What one step adds to one query's answer. The last one of a query carries `finish_reason` and `stats`.

    `text` may lag behind `token_ids`: a character may need several tokens, and a possible beginning of a stop string
    is held back. Made for every row in every round, which takes a frozen dataclass several times as long.
    """

    request_id: str
    token_ids: tuple[int, ...] = ()
    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    error: str | None = None
    stats: QueryStats | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One line of the operator's log."""

    at_s: float
    """Wall clock, seconds since the epoch."""
    kind: EventKind
    message: str
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptancePoint:
    """One finished query on the acceptance chart."""

    query: int
    """Running number of the query since the engine started."""
    at_s: float
    domain: str
    drafter_version: int
    rounds: int
    proposed: int
    accepted: int
    committed: int
    output_tokens: int
    decode_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightManifest:
    """What is known of one drafter version (a WeightVersion's JSON half).

    Example: `WeightManifest(number=3, kind="feature", config={...}, config_hash="9f2c…", parent=2, digest="ab41…",
    training_step=120, stream_position="1700000000000-0", gate={"candidate": 0.31, "serving": 0.24}, created_at_s=…)`
    """

    number: int
    kind: str
    config: dict[str, Any]
    config_hash: str
    parent: int | None
    digest: str
    """sha256 of the safetensors file."""
    training_step: int = 0
    stream_position: str = ""
    gate: dict[str, float] = field(default_factory=dict)
    created_at_s: float = 0.0
    note: str = ""
    rolled_back: str = ""
    """Why this version was rolled back; empty while it is fit to serve."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStatus:
    """A snapshot of the engine for `/health`, `/metrics` and the admin page. Counters only ever grow."""

    target: str
    drafter_kind: str
    drafter_version: int
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
    computes: str = ""
    """By what, and with which weights, as in `CPU: AVX2, bfloat16 weights widened in registers`."""
    counters: dict[str, float] = field(default_factory=dict)
    """Name to monotone count, as listed in osd/counters.py and osd/recorder.py."""
    acceptance_by_version: dict[int, dict[str, int]] = field(default_factory=dict)
    """Drafter version to {rounds, proposed, accepted, committed}."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerStatus:
    """A snapshot of the distiller for the admin page."""

    state: TrainerState
    steps: int = 0
    trained_tokens: int = 0
    loss: float | None = None
    learning_rate: float = 0.0
    replay_records: int = 0
    replay_bytes: int = 0
    held_out_records: int = 0
    published_version: int = 0
    gate: dict[str, float] = field(default_factory=dict)
    """The latest gate decision: candidate, serving and margin acceptance figures, and published (1 or 0)."""
    stream_lag: int | None = None
    """Outcomes recorded but not yet read; None when Redis is away."""
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceStatus:
    """Everything an operator sees at once."""

    ready: bool
    engine: EngineStatus | None
    trainer: TrainerStatus | None
    """None: it should run, but does not answer."""
    restarts: dict[str, int] = field(default_factory=dict)
    """Actor name to the number of times it was restarted; `ray`: how often all of Ray was, and every actor with it."""
    processes: dict[str, int] = field(default_factory=dict)
    """Process name to resident bytes."""
