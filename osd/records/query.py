"""A query (`Request`) and its answer (`TokenDelta`).

Vocabulary (docs/structure.md): a *round* is one proposal and its verification. Of the tokens that the drafter
*proposed* some are *accepted*; each round also yields one *recovered* token (drawn from the residual at the first
rejection) or one *bonus* token (if all were accepted); *committed* = accepted + recovered or bonus. The token from
prefill belongs to no round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from osd.records.asked.constraint import ConstraintSpec
from osd.records.asked.limits import RepetitionLimit, ThinkingLimit
from osd.records.drafter_id import DrafterId
from osd.records.outcome import Round

FinishReason = Literal["stop", "length", "cancelled", "error"]
DomainFrom = Literal["named", "none", "router"]
"""Where a query's domain comes from: the request or its API key, nowhere (so it is `DEFAULT_DOMAIN`), or the router
(`osd.drafters.router`)."""


DEFAULT_DOMAIN = "default"
"""The domain of queries that name none."""
DOMAIN_PATTERN = r"^[A-Za-z0-9._:-]{1,64}$"
"""What domains that requests name have to match."""
MAX_STOPS = 64
"""Stop strings of a query."""
NOT_FINITE = "the model's output for it is not finite (NaN or infinity)"
"""The error message in the last delta of such a query."""
CONSTRAINT_FAILED = "its constraint is too complex to be followed further"
"""How the error message begins in the last delta of such a query."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How one query's tokens are drawn. Raises ValueError, naming the field, if a value is out of range."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps the whole vocabulary."""
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    max_tokens: int = 128
    """0: the prompt is only read, for its log-probabilities."""
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    """None: none; n: log-probabilities of the chosen token and of the n most likely tokens."""
    ignore_eos: bool = False
    repetition_penalty: float = 1.0
    """Above 1 makes tokens of prompt and output less likely (Keskar et al. 2019, arXiv 1909.05858)."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(token id, what is added to its logit)."""
    allowed_token_ids: tuple[int, ...] = ()
    """Only these are emitted; empty: any."""
    bad_words: tuple[tuple[int, ...], ...] = ()
    """Sequences of tokens that are not completed."""
    min_tokens: int = 0
    """Before so many tokens, nothing that ends the answer is emitted, and no stop string ends it."""
    stop_token_ids: tuple[int, ...] = ()
    """End the answer, as the model's own end tokens do."""
    include_stop: bool = False
    """Whether the stop string, or the token that ends the answer, is part of its text."""
    skip_special_tokens: bool = True
    """False: special tokens are part of the text, as they are spelt."""
    prompt_logprobs: int | None = None
    """The same as `logprobs` for the tokens of the prompt."""
    logprob_token_ids: tuple[int, ...] = ()
    """Where `logprobs` is given: the tokens whose log-probabilities are returned instead of the most likely ones."""
    repetition_limit: RepetitionLimit | None = None
    """Ends an answer that repeats itself."""

    def __post_init__(self) -> None:
        _require(0.0 <= self.temperature <= 2.0, "temperature must be between 0 and 2")
        _require(0.0 < self.top_p <= 1.0, "top_p must be above 0 and at most 1")
        _require(self.top_k >= 0, "top_k must be 0 (off) or a positive number")
        _require(0.0 <= self.min_p <= 1.0, "min_p must be between 0 and 1")
        _require(-2.0 <= self.presence_penalty <= 2.0, "presence_penalty must be between -2 and 2")
        _require(-2.0 <= self.frequency_penalty <= 2.0, "frequency_penalty must be between -2 and 2")
        _require(self.max_tokens >= 0, "max_tokens must be at least 0")
        _require(len(self.stop) <= MAX_STOPS and all(self.stop), f"stop takes at most {MAX_STOPS} strings, none empty")
        _require(self.logprobs is None or 0 <= self.logprobs <= 20, "logprobs must be between 0 and 20")
        _require(
            self.prompt_logprobs is None or 0 <= self.prompt_logprobs <= 20, "prompt_logprobs must be between 0 and 20"
        )
        _require(0.0 < self.repetition_penalty <= 10.0, "repetition_penalty must be above 0 and at most 10")
        _require(0 <= self.min_tokens <= self.max_tokens, "min_tokens must be between 0 and max_tokens")
        _require(all(self.bad_words), "bad_words must not be empty")

    @property
    def is_greedy(self) -> bool:
        """Whether the target's most likely token is taken."""
        return self.temperature == 0.0

    def stop_token(self, output_ids: Sequence[int]) -> int | None:
        """The output's last token, if it is one of `stop_token_ids`."""
        return output_ids[-1] if output_ids and output_ids[-1] in self.stop_token_ids else None

    @property
    def adjusts_logits(self) -> bool:
        """Whether the logits are changed before temperature and filters."""
        return bool(
            self.presence_penalty
            or self.frequency_penalty
            or self.repetition_penalty != 1.0
            or self.logit_bias
            or self.allowed_token_ids
            or self.bad_words
            or self.min_tokens
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One query to the engine.

    `resume_ids` and `resume_chars` continue a query on another engine: the output tokens, and the number of characters
    of output text, that the client already has.

    Example: `Request(request_id="r-1", prompt_ids=(1, 2, 3), params=SamplingParams(temperature=0.0, max_tokens=16))`
    """

    request_id: str
    prompt_ids: tuple[int, ...]
    params: SamplingParams = field(default_factory=SamplingParams)
    domain: str = DEFAULT_DOMAIN
    domain_from: DomainFrom = "named"
    store: bool = True
    """False: the query is not recorded; it only counts in the counters."""
    speculation_length: int | None = None
    """A fixed speculation length for this query (0: plain decoding); None: chosen by goodput."""
    priority: int = 0
    """Waiting queries with lower numbers are served first."""
    constraint: ConstraintSpec | None = None
    """Which texts the answer may be; None: any."""
    thinking: ThinkingLimit | None = None
    """How long the answer may reason; None: without a limit of its own."""
    cache_salt: str = ""
    """The prefix cache is shared with queries of the same salt only."""
    resume_ids: tuple[int, ...] = ()
    resume_chars: int = 0


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The target's log-probability, before temperature and filters, of one emitted token."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    """(token id, log-probability) of the most likely tokens, best first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryStats:
    """One query's statistics. Acceptance rate = accepted / proposed; acceptance length = committed / rounds."""

    prompt_tokens: int = 0
    reused_tokens: int = 0
    """Prompt tokens that came from the prefix cache."""
    output_tokens: int = 0
    rounds: int = 0
    proposed: int = 0
    accepted: int = 0
    committed: int = 0
    accepted_histogram: tuple[int, ...] = ()
    """Index j: number of rounds that proposed tokens and accepted exactly j of them. Its length is that of the longest
    proposal plus one."""
    drafters: tuple[DrafterId, ...] = ()
    """Every drafter and version that proposed for this query, in order of first use."""
    domain: str = ""
    """The domain under which it was decoded, recorded and counted; empty: the request's."""
    queue_ms: float = 0.0
    prefill_ms: float = 0.0
    draft_ms: float = 0.0
    verify_ms: float = 0.0
    total_ms: float = 0.0

    @property
    def drafter_version(self) -> int:
        """The version that proposed last; 0 if nothing with versions proposed."""
        return next((drafter.version for drafter in reversed(self.drafters) if drafter.version), 0)


class TokenDelta(msgspec.Struct, frozen=True, kw_only=True):
    """What one step adds to one query's answer. A query's last delta carries `finish_reason` and `stats`.

    `text` may lag behind `token_ids`, since a character may need several tokens, and a possible beginning of a stop
    string is held back. A msgspec struct, since a frozen dataclass takes several times as long to create, for every row
    and round.
    """

    request_id: str
    token_ids: tuple[int, ...] = ()
    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    stopped_by: str | int | None = None
    """The request's stop string, or the id of its stop token, that ended the answer."""
    error: str | None = None
    stats: QueryStats | None = None
    round: Round | None = None
    """The round that gave these tokens; None for the first token, which the prefill gives."""
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    """Log-probabilities of the prompt's tokens but the first; only in a query's first delta."""
