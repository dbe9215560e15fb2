"""Answers requests with `use_beam_search`: a loop over queries for one token each, which the target decodes plainly.

Each step asks the engine for the most likely next tokens of every beam. The prefix cache holds most of a beam,
so that a step takes a pass over a few tokens a beam. Nothing is drafted, sampled or learnt from.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from osd.records.query import QueryStats, Request, SamplingParams, TokenDelta, TokenLogprob
from serving.answering.beams import Beam, Beams
from serving.answering.generation import Deltas, run_queries
from serving.codec import Codec
from serving.engine_client import EngineClient
from serving.wire.errors import ApiError, took_too_long
from serving.wire.request_base import MAX_LOGPROBS, GenerationFields

_OF_SAMPLING = (
    ("top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias")
    + ("allowed_token_ids", "bad_words", "stop", "min_tokens", "thinking_token_budget", "repetition_detection")
    + ("logprob_token_ids", "response_format", "structured_outputs", "structural_tag")
    + ("guided_json", "guided_regex", "guided_choice", "guided_grammar")
)
_TEMPERATURES = (0.0, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class BeamSearch:
    """How the answers of one request are searched for."""

    width: int
    """Beams, and answers, of each prompt."""
    length_penalty: float
    codec: Codec


def beam_search(body: GenerationFields, codec: Codec, queries: Sequence[Request]) -> BeamSearch | None:
    """The search that a request asks for; None: its answers are sampled.

    Args:
        body: the request.
        codec: the target's tokenizer.
        queries: those that would be run without a search.

    Raises:
        ApiError: 400, a field cannot be combined with a search.
    """
    if not body.use_beam_search:
        return None
    fields = type(body).model_fields
    for name in _OF_SAMPLING:
        if getattr(body, name) != fields[name].get_default(call_default_factory=True):
            raise _refused(name, "cannot be combined with use_beam_search: beams are the most likely answers")
    if body.temperature not in _TEMPERATURES:
        raise _refused("temperature", "is of sampling, but use_beam_search samples nothing")
    if body.osd.speculation_length:
        raise _refused("osd.speculation_length", "cannot be combined with use_beam_search, which decodes plainly")
    if queries[0].constraint is not None:
        raise _refused("tools", "whose calls are enforced cannot be combined with use_beam_search")
    if queries[0].params.max_tokens == 0:
        raise _refused("max_tokens", "is 0, but a search with use_beam_search takes at least 1 token")
    num_ends = len(_end_ids(body.ignore_eos, body.stop_token_ids, codec))
    if body.n + num_ends > MAX_LOGPROBS:
        most = max(MAX_LOGPROBS - num_ends, 0)
        raise _refused("n", f"is {body.n}, but a search with use_beam_search takes {most} beams at most")
    return BeamSearch(width=body.n, length_penalty=body.length_penalty, codec=codec)


def _refused(name: str, why: str) -> ApiError:
    return ApiError(400, f"'{name}' {why}; leave one of them out.", param=name, code="invalid_value")


def _end_ids(ignores_eos: bool, stop_token_ids: Sequence[int], codec: Codec) -> frozenset[int]:
    return frozenset(stop_token_ids) | (frozenset() if ignores_eos else codec.end_ids)


async def search_beams(
    client: EngineClient,
    queries: Sequence[Request],
    search: BeamSearch,
    *,
    timeout_s: float,
    on_first_token: Callable[[], None],
    on_delta: Callable[[int, TokenDelta], None] = lambda index, delta: None,
    ping_interval_s: float | None = None,
) -> Deltas:
    """As `run_queries`, but the answers of a prompt are its best beams, each of which is told of in one delta.

    Args:
        client: the engine.
        queries: `search.width` for each prompt.
        search: how they are answered.
        timeout_s: see `run_queries`, as all that follow.
        on_first_token: see there.
        on_delta: see there.
        ping_interval_s: see there.
    """
    now_s = asyncio.get_running_loop().time
    deadline_s, told_s = now_s() + timeout_s, now_s()
    first_token = _once(on_first_token)
    for at in range(0, len(queries), search.width):
        prompt = _Prompt(queries[at], search)
        while not prompt.beams.is_over:
            if now_s() >= deadline_s:
                raise took_too_long(timeout_s)
            steps = run_queries(
                client,
                prompt.next_queries(),
                timeout_s=timeout_s,
                deadline_s=deadline_s,
                on_first_token=first_token,
                ping_interval_s=ping_interval_s,
            )
            async with aclosing(steps):
                async for item in steps:
                    if item is not None:
                        prompt.take(*item)
                    if item is None or (ping_interval_s is not None and now_s() - told_s >= ping_interval_s):
                        told_s = now_s()
                        yield None
            prompt.grow()
        for number, delta in enumerate(prompt.deltas()):
            on_delta(at + number, delta)
            yield at + number, delta


def _once(call: Callable[[], None]) -> Callable[[], None]:
    """A function that calls this one the first time only."""
    calls = iter([call])
    return lambda: next(calls, lambda: None)()


class _Prompt:
    """The search for the answers to one prompt.

    Args:
        query: the query that would be answered without a search.
        search: how it is answered.
    """

    def __init__(self, query: Request, search: BeamSearch) -> None:
        params = query.params
        self._query, self._search = query, search
        self.beams = Beams(
            width=search.width,
            max_tokens=params.max_tokens,
            length_penalty=search.length_penalty,
            end_ids=_end_ids(params.ignore_eos, params.stop_token_ids, search.codec),
        )
        self._num_steps = 0
        self._tops: dict[int, TokenLogprob] = {}
        self._stats: list[QueryStats] = []
        self._prompt_logprobs: tuple[TokenLogprob, ...] = ()

    def next_queries(self) -> list[Request]:
        """One query for each running beam."""
        self._num_steps += 1
        params = SamplingParams(
            temperature=0.0,
            max_tokens=1,
            logprobs=self.beams.num_wanted,
            prompt_logprobs=self._query.params.prompt_logprobs if self._num_steps == 1 else None,
        )
        return [
            replace(
                self._query,
                request_id=f"{self._query.request_id}-{self._num_steps}-{number}",
                prompt_ids=(*self._query.prompt_ids, *beam.token_ids),
                params=params,
                store=False,
                speculation_length=0,
            )
            for number, beam in enumerate(self.beams.running)
        ]

    def take(self, number: int, delta: TokenDelta) -> None:
        """Note what the engine said of a running beam."""
        if delta.logprobs:
            self._tops[number] = delta.logprobs[0]
        self._prompt_logprobs = self._prompt_logprobs or delta.prompt_logprobs
        self._stats += [delta.stats] if delta.stats else []

    def grow(self) -> None:
        """Extend the running beams by what was noted."""
        self.beams.grow([self._tops[number] for number in range(len(self.beams.running))])

    def deltas(self) -> list[TokenDelta]:
        """The answers, best first. The first one's statistics hold the engine's time for all of them."""
        return [self._delta(number, beam) for number, beam in enumerate(self.beams.finished)]

    def _delta(self, number: int, beam: Beam) -> TokenDelta:
        params, codec = self._query.params, self._search.codec
        has_ended = self.beams.has_ended(beam)
        shown = beam.token_ids[:-1] if has_ended and not params.include_stop else beam.token_ids
        num_logprobs = params.logprobs
        return TokenDelta(
            request_id=self._query.request_id,
            token_ids=beam.token_ids,
            text=codec.answer_text(self._query.prompt_ids, shown, skip_special_tokens=params.skip_special_tokens),
            logprobs=()
            if num_logprobs is None
            else tuple(replace(one, top=one.top[:num_logprobs]) for one in beam.tokens),
            finish_reason="stop" if has_ended else "length",
            stopped_by=params.stop_token(beam.token_ids) if has_ended else None,
            stats=self._stats_of(beam, is_first=number == 0),
            prompt_logprobs=self._prompt_logprobs,
        )

    def _stats_of(self, beam: Beam, *, is_first: bool) -> QueryStats:
        first, num_prompt = self._stats[0], len(self._query.prompt_ids)
        stats = QueryStats(
            prompt_tokens=num_prompt, reused_tokens=num_prompt, output_tokens=len(beam.tokens), domain=first.domain
        )
        if not is_first:
            return stats
        return replace(
            stats,
            reused_tokens=first.reused_tokens,
            queue_ms=sum(one.queue_ms for one in self._stats),
            prefill_ms=sum(one.prefill_ms for one in self._stats),
        )
