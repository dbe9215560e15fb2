"""Runs one HTTP request's queries concurrently, and merges their deltas into one stream."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from msgspec import structs

from osd.records.errors import EngineUnavailableError
from osd.records.query import CONSTRAINT_FAILED, NOT_FINITE, FinishReason, QueryStats, Request, TokenDelta, TokenLogprob
from serving.engine_client import EngineClient
from serving.wire.errors import NO_RETRY, ApiError, internal_error, took_too_long

log = logging.getLogger(__name__)

# Deltas buffered for a slow client; beyond that, the queries' streams are not read until it catches up.
_MAX_WAITING_DELTAS = 64


@dataclass(slots=True)
class Choice:
    """The part of one query's answer that has arrived."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    stopped_by: str | int | None = None
    stats: QueryStats = field(default_factory=QueryStats)

    def add(self, delta: TokenDelta) -> None:
        """Append the next delta."""
        self.text += delta.text
        self.token_ids.extend(delta.token_ids)
        self.logprobs.extend(delta.logprobs)
        self.prompt_logprobs = self.prompt_logprobs or delta.prompt_logprobs
        self.finish_reason, self.stopped_by = delta.finish_reason, delta.stopped_by
        self.stats = delta.stats or self.stats


Deltas = AsyncGenerator[tuple[int, TokenDelta] | None, None]
"""(index of the request, delta) as they arrive; None when there was none for `ping_interval_s`."""


async def run_queries(
    client: EngineClient,
    requests: Sequence[Request],
    *,
    timeout_s: float,
    on_first_token: Callable[[], None],
    on_delta: Callable[[int, TokenDelta], None] = lambda index, delta: None,
    ping_interval_s: float | None = None,
    deadline_s: float | None = None,
) -> Deltas:
    """Yield the deltas of all queries until every query has finished.

    Closing the generator, or any query's failure, closes every query's stream, which cancels it.

    Args:
        client: the engine.
        requests: the queries.
        timeout_s: limit for all queries together.
        on_first_token: called once, at the first token.
        on_delta: called with each delta and its query's index.
        ping_interval_s: yield None after this long without a delta; None: never.
        deadline_s: when `timeout_s` is over, by the event loop's clock; None: it begins now.

    Raises:
        OsdError: raised by the engine client.
        ApiError: a query failed, or the queries took longer than `timeout_s`.
    """
    arrived: asyncio.Queue[tuple[int, TokenDelta | Exception]] = asyncio.Queue(_MAX_WAITING_DELTAS)
    pumps = [asyncio.create_task(_pump(client, index, request, arrived)) for index, request in enumerate(requests)]
    now_s = asyncio.get_running_loop().time
    deadline_s = now_s() + timeout_s if deadline_s is None else deadline_s
    try:
        num_running, has_token = len(requests), False
        while num_running:
            ping_s = deadline_s if ping_interval_s is None else now_s() + ping_interval_s
            try:
                async with asyncio.timeout_at(min(ping_s, deadline_s)):
                    index, item = await arrived.get()
            except TimeoutError:
                if now_s() >= deadline_s:
                    raise took_too_long(timeout_s) from None
                yield None
                continue
            if isinstance(item, Exception):
                raise item
            if item.token_ids and not has_token:
                has_token = True
                on_first_token()
            on_delta(index, item)
            if item.finish_reason is not None:
                _check_finish(item)
                num_running -= 1
            yield index, item
    finally:
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def in_intervals(deltas: Deltas, num_tokens: int) -> Deltas:
    """The deltas, joined until a choice has so many new tokens; its first and its last one do not wait for that."""
    begun: set[int] = set()
    waiting: dict[int, TokenDelta] = {}
    async with aclosing(deltas):
        async for item in deltas:
            if item is None:
                yield None
                continue
            index, delta = item
            if (before := waiting.pop(index, None)) is not None:
                delta = _joined(before, delta)
            is_first = bool(delta.token_ids) and index not in begun
            if is_first or delta.finish_reason is not None or len(delta.token_ids) >= num_tokens:
                begun.add(index)
                yield index, delta
            else:
                waiting[index] = delta


def _joined(one: TokenDelta, other: TokenDelta) -> TokenDelta:
    """One delta that says what both say."""
    return structs.replace(
        other,
        token_ids=one.token_ids + other.token_ids,
        text=one.text + other.text,
        logprobs=one.logprobs + other.logprobs,
        prompt_logprobs=one.prompt_logprobs or other.prompt_logprobs,
    )


async def _pump(
    client: EngineClient, index: int, request: Request, arrived: asyncio.Queue[tuple[int, TokenDelta | Exception]]
) -> None:
    stream = client.generate(request)
    finished = False
    try:
        async for delta in stream:
            finished = delta.finish_reason is not None
            await arrived.put((index, delta))
        if not finished:
            raise EngineUnavailableError("the engine's answer ended early; try again")
    except Exception as error:  # raised again where the merged stream is read
        await arrived.put((index, error))
    finally:
        # A generator suspended at `yield` runs no clean-up until it is closed. Plain iterators have no aclose.
        close = getattr(stream, "aclose", None)
        if close is not None:
            await close()


def _check_finish(delta: TokenDelta) -> None:
    if delta.finish_reason == "error":
        is_of_constraint = delta.error is not None and delta.error.startswith(CONSTRAINT_FAILED)
        # What the grammar's compiler says may quote the answer, which no log may hold.
        log.error(
            "query %s failed in the engine: %s",
            delta.request_id,
            CONSTRAINT_FAILED if is_of_constraint else delta.error,
        )
        if is_of_constraint:
            message = f"This query cannot be answered: {delta.error}. Simplify the schema or grammar."
            raise ApiError(500, message, code="constraint_failed", headers=NO_RETRY)
        if delta.error == NOT_FINITE:
            message = f"This query cannot be answered: {NOT_FINITE}."
            raise ApiError(500, message, code="not_finite", headers=NO_RETRY)
        raise internal_error()
    if delta.finish_reason == "cancelled":
        raise EngineUnavailableError("the engine cancelled this query; try again")
