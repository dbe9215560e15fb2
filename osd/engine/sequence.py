"""The state of one query in the engine: its tokens, its row, its rounds."""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain
from random import Random
from typing import NamedTuple

from osd.ports.constraint import RowConstraint
from osd.records.drafter_id import DrafterId
from osd.records.errors import PromptTooLongError
from osd.records.outcome import ACCEPTED, BONUS, RECOVERED, Round
from osd.records.query import FinishReason, QueryStats, Request, TokenLogprob
from osd.records.status import AcceptancePoint
from osd.speculation.budget import RowBudget
from osd.text.codec import TextCodec
from osd.text.repeats import Repeats
from osd.text.stop_strings import AnswerText
from osd.verify.shaping import RowShaping
from osd.verify.top_logprobs import TopLogprobs


class Rejected(NamedTuple):
    """What a round drafted from its first rejected token on."""

    ids: list[int]
    top: TopLogprobs
    """The target's log-probabilities after each of them."""


@dataclass(slots=True, eq=False)
class Sequence:
    """One query, from submission to its end; it holds a row from admission to its end.

    After the prefill, the target's cache holds all of `prompt + output` except the last token.
    """

    request: Request
    text: AnswerText
    generator: Random
    end_ids: frozenset[int] = frozenset()
    """Tokens that end the answer."""
    constraint: RowConstraint | None = None
    """Restricts the tokens of the answer; None: no restriction."""
    repeats: Repeats | None = None
    """Ends an answer that repeats itself; None: it may."""
    num_recorded: int = 0
    """Number of log-probabilities per position for the outcome; 0: no outcome is recorded."""
    rejected_top_k: int = 0
    """Number of log-probabilities after each rejected token for the outcome; 0: none are recorded."""
    shaping: RowShaping = field(init=False)
    """Shaping parameters of its distributions."""
    num_logprobs: int = field(init=False)
    """Number of log-probabilities per position that are needed: for the outcome, or more for the client."""
    row: int = -1
    num_cached: int = 0
    """Number of positions in the target's cache."""
    num_reused: int = 0
    """How many of those came from the prefix cache."""
    output_ids: list[int] = field(default_factory=list)
    budget: RowBudget = field(default_factory=RowBudget)
    rounds: list[Round] = field(default_factory=list)
    kinds: bytearray = field(default_factory=bytearray)
    """ACCEPTED, RECOVERED or BONUS for each output token of this engine; BONUS for those of an earlier engine."""
    tops: list[TopLogprobs] = field(default_factory=list)
    """The target's log-probabilities at committed positions, for the outcome."""
    rejected: list[Rejected] = field(default_factory=list)
    """The rejected tokens of each round that has some, for the outcome."""
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    """Of the prompt's tokens but the first, as far as it was prefilled; empty unless the client asked."""
    finish_reason: FinishReason | None = None
    committed: int = 0
    submitted_s: float = field(default_factory=time.monotonic)
    admitted_s: float = 0.0
    prefill_ms: float = 0.0
    draft_ms: float = 0.0
    verify_ms: float = 0.0

    def __post_init__(self) -> None:
        self.shaping = RowShaping.of(self.request.params)
        asked = self.request.params.logprobs
        self.num_logprobs = max(self.num_recorded, 0 if asked is None else max(asked, 1))

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Known tokens: prompt and output."""
        return (*self.request.prompt_ids, *self.output_ids)

    @property
    def num_tokens(self) -> int:
        """Number of known tokens: prompt and output."""
        return len(self.request.prompt_ids) + len(self.output_ids)

    @property
    def is_resumed(self) -> bool:
        """Whether an earlier engine began this answer, whose verification record is then incomplete."""
        return bool(self.request.resume_ids)

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Whether all positions of the prompt must be computed; a resumed query's client has them."""
        return self.request.params.prompt_logprobs is not None and not self.is_resumed

    @property
    def num_left(self) -> int:
        """Number of output tokens that the query may still get."""
        return self.request.params.max_tokens - len(self.output_ids)

    def set_budget(self, max_length: int, context_tokens: int) -> None:
        """Update how many tokens may be proposed next.

        Args:
            max_length: the limit for all queries.
            context_tokens: longest prompt + output.
        """
        room = min(self.num_left, context_tokens - self.num_tokens) - 1  # the recovered or bonus token needs one
        self.budget.limit = max(min(room, max_length), 0)
        self.budget.num_tokens = self.num_tokens

    def begin(self, tokens: list[int], top: TopLogprobs | None) -> None:
        """Append the token from prefill, which belongs to no round."""
        self._append(tokens, [BONUS] * len(tokens), top)

    def commit(
        self, tokens: list[int], round_: Round, top: TopLogprobs | None, rejected: Rejected | None = None
    ) -> Round:
        """Append one round's tokens: the accepted ones, then the recovered or bonus token unless it was cut off.

        Args:
            tokens: up to where the query ends.
            round_: as verified.
            top: the target's log-probabilities at the round's positions.
            rejected: what was drafted in vain, for the outcome.

        Returns:
            The round with no more accepted tokens than were appended.
        """
        if round_.accepted > len(tokens):
            round_ = Round(round_.drafter_version, round_.proposed, len(tokens), round_.drafter_name)
        last = BONUS if round_.accepted == round_.proposed else RECOVERED
        if rejected is not None and len(tokens) > round_.accepted:
            self.rejected.append(rejected)
        self.rounds.append(round_)
        self._append(tokens, [ACCEPTED] * round_.accepted + [last] * (len(tokens) - round_.accepted), top)
        self.committed += len(tokens)
        self.num_cached += len(tokens)
        return round_

    def _append(self, tokens: list[int], kinds: list[int], top: TopLogprobs | None) -> None:
        self.output_ids.extend(tokens)
        self.kinds.extend(kinds)
        if self.constraint is not None:
            self.constraint.advance(tokens)
        if top is not None and self.num_recorded:
            self.tops.append(top.cut(len(tokens), self.num_recorded))

    def cut(self, tokens: list[int], context_tokens: int) -> tuple[list[int], FinishReason | None]:
        """New tokens up to the query's end, and why it ends there (None: it continues).

        Args:
            tokens: the tokens to append; their text is added to the answer.
            context_tokens: longest prompt + output.
        """
        room, params = min(self.num_left, context_tokens - self.num_tokens), self.request.params
        for count, token in enumerate(tokens, start=1):
            if token in self.end_ids:
                if params.include_stop:
                    self.text.push(token)
                return tokens[:count], "stop"
            if self.text.push(token, may_stop=len(self.output_ids) + count >= params.min_tokens):
                return tokens[:count], "stop"
            if self.repeats is not None and self.repeats.push(token):
                return tokens[:count], "length"
            if count >= room:
                return tokens[:count], "length"
        return tokens, None

    def reason_to_finish(self, context_tokens: int) -> FinishReason | None:
        """Why a query with output ends in its present state; None: it continues. See `cut`."""
        if self.output_ids[-1] in self.end_ids or self.text.matched is not None:
            return "stop"
        repeats = self.repeats is not None and self.repeats.found
        if repeats or self.num_left <= 0 or self.num_tokens >= context_tokens:
            return "length"
        return None

    @property
    def stopped_by(self) -> str | int | None:
        """Which of the request's own stop strings or stop tokens ended the answer; None for the model's end tokens."""
        if self.text.matched is not None:
            return self.text.matched
        return self.request.params.stop_token(self.output_ids)

    def add_times(self, draft_ms: float, verify_ms: float) -> None:
        """Add the duration of a round with this query."""
        self.draft_ms += draft_ms
        self.verify_ms += verify_ms

    def stats(self) -> QueryStats:
        """The query's statistics so far."""
        proposing = [r for r in self.rounds if r.proposed]
        drafters = dict.fromkeys(DrafterId(r.drafter_name, r.drafter_version) for r in proposing)
        num_accepted = Counter(r.accepted for r in proposing)
        longest = max((r.proposed for r in proposing), default=-1)
        return QueryStats(
            prompt_tokens=len(self.request.prompt_ids),
            reused_tokens=min(self.num_reused, len(self.request.prompt_ids)),
            output_tokens=len(self.output_ids),
            rounds=len(self.rounds),
            proposed=sum(r.proposed for r in self.rounds),
            accepted=sum(r.accepted for r in self.rounds),
            committed=self.committed,
            accepted_histogram=tuple(num_accepted[count] for count in range(longest + 1)),
            drafters=tuple(drafters),
            domain=self.request.domain,
            queue_ms=max(self.admitted_s - self.submitted_s, 0.0) * 1e3 if self.admitted_s else 0.0,
            prefill_ms=self.prefill_ms,
            draft_ms=self.draft_ms,
            verify_ms=self.verify_ms,
            total_ms=(time.monotonic() - self.submitted_s) * 1e3,
        )


def check_request(request: Request, vocab_tokens: int, max_context_tokens: int) -> None:
    """Check that a query can be served.

    Raises:
        PromptTooLongError: there is no room for a new token.
        ValueError: the prompt is empty, or a field holds token ids that the target lacks.
    """
    if not request.prompt_ids:
        raise ValueError("the prompt is empty; give at least one token")
    for name, ids in _token_ids(request).items():
        if not all(0 <= token < vocab_tokens for token in ids):
            raise ValueError(f"{name} token ids must be between 0 and {vocab_tokens - 1}")
    if len(request.prompt_ids) >= max_context_tokens:
        raise PromptTooLongError(
            f"the prompt has {len(request.prompt_ids)} tokens, the context holds {max_context_tokens} "
            "with the answer; shorten the prompt"
        )


def _token_ids(request: Request) -> dict[str, Iterable[int]]:
    """All token ids that a query holds, by field; one of a token that the target lacks would end every query's step."""
    params, thinking = request.params, request.thinking
    return {
        "prompt": request.prompt_ids,
        "resume_ids": request.resume_ids,
        "logit_bias": (token for token, _ in params.logit_bias),
        "allowed_token_ids": params.allowed_token_ids,
        "bad_words": chain.from_iterable(params.bad_words),
        "stop_token_ids": params.stop_token_ids,
        "logprob_token_ids": params.logprob_token_ids,
        "thinking": (*thinking.begin_ids, *thinking.end_ids) if thinking else (),
    }


def new_sequence(
    request: Request,
    codec: TextCodec,
    eos_ids: frozenset[int],
    num_recorded: int,
    constraint: RowConstraint | None = None,
    *,
    rejected_top_k: int = 0,
) -> Sequence:
    """A query as it enters the queue; a resumed one includes what its client already has.

    Args:
        request: the query.
        codec: the target's tokenizer.
        eos_ids: tokens that end an answer of this target.
        num_recorded: number of log-probabilities per position for the outcome; 0: nothing is recorded.
        constraint: restricts the tokens of the answer; None: no restriction.
        rejected_top_k: as `num_recorded`, after rejected tokens; at most `num_recorded`.
    """
    # A resumed query is not recorded, since the verification record of its first tokens was lost with its engine.
    num_recorded = num_recorded if request.store and not request.resume_ids else 0
    seed = request.params.seed if request.params.seed is not None else secrets.randbits(62)
    # A resumed query must not repeat the random draws of its earlier tokens.
    generator = Random((seed + 7919 * len(request.resume_ids)) % 2**63)
    params = request.params
    text = AnswerText(
        codec,
        params.stop,
        request.prompt_ids,
        include_stop=params.include_stop,
        skip_special_tokens=params.skip_special_tokens,
    )
    end_ids = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else eos_ids)
    sequence = Sequence(
        request=request,
        text=text,
        generator=generator,
        end_ids=end_ids,
        num_recorded=num_recorded,
        constraint=constraint,
        repeats=Repeats(params.repetition_limit) if params.repetition_limit else None,
        rejected_top_k=min(rejected_top_k, num_recorded),
    )
    sequence.budget.fixed = request.speculation_length
    sequence.output_ids = list(request.resume_ids)
    sequence.kinds = bytearray([BONUS] * len(request.resume_ids))
    for count, token in enumerate(request.resume_ids, start=1):
        sequence.text.push(token, may_stop=count >= params.min_tokens)
        if sequence.repeats is not None:
            sequence.repeats.push(token)
    sequence.text.skip(request.resume_chars)
    if constraint is not None:
        constraint.advance(request.resume_ids)
    return sequence


def acceptance_point(sequence: Sequence, stats: QueryStats, query: int) -> AcceptancePoint:
    """A finished query's point of the acceptance history; `query` is its running number."""
    return AcceptancePoint(
        query=query,
        at_s=time.time(),
        domain=sequence.request.domain,
        drafter_version=stats.drafter_version,
        drafter_name=next((one.name for one in reversed(stats.drafters) if one.version == stats.drafter_version), ""),
        rounds=stats.rounds,
        proposed=stats.proposed,
        accepted=stats.accepted,
        committed=stats.committed,
        output_tokens=stats.output_tokens,
        decode_ms=stats.draft_ms + stats.verify_ms,
    )
