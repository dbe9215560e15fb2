"""A query on its way in (`Request`) and its answer on the way out (`TokenDelta`).

Vocabulary (docs/structure.md): a *round* is one propose and one verify; of the tokens *proposed* by the drafter some
are *accepted*; each round also yields one *recovered* token (drawn from the residual at the first rejection) or one
*bonus* token (when all were accepted); *committed* = accepted + recovered or bonus. The token that the prefill itself
yields belongs to no round.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import msgspec

from osd.records.drafter_id import DrafterId

FinishReason = Literal["stop", "length", "cancelled", "error"]


NOT_FINITE = "the model's output for it is not finite (NaN or infinity)"
"""Why a query ended with an error, as its last delta says it."""


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
    drafters: tuple[DrafterId, ...] = ()
    """Every drafter and version that proposed for this query, in the order in which they came."""
    queue_ms: float = 0.0
    prefill_ms: float = 0.0
    draft_ms: float = 0.0
    verify_ms: float = 0.0
    total_ms: float = 0.0

    @property
    def drafter_version(self) -> int:
        """The version that came last; 0 where nothing was proposed."""
        return self.drafters[-1].version if self.drafters else 0


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
