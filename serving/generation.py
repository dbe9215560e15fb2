"""Runs one HTTP request's queries concurrently, and merges their deltas into one stream."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field

from osd.records.errors import EngineUnavailableError
from osd.records.query import NOT_FINITE, FinishReason, QueryStats, Request, TokenDelta, TokenLogprob
from serving.engine_client import EngineClient
from serving.wire.errors import ApiError, internal_error

log = logging.getLogger(__name__)

# Deltas buffered for a slow client; beyond that, the queries' streams are not read until it catches up.
_MAX_WAITING_DELTAS = 64


@dataclass(slots=True)
class Choice:
    """The part of one query's answer that has arrived."""

    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stats: QueryStats = field(default_factory=QueryStats)

    def add(self, delta: TokenDelta) -> None:
        """Append the next delta."""
        self.text += delta.text
        self.logprobs.extend(delta.logprobs)
        self.finish_reason = delta.finish_reason
        self.stats = delta.stats or self.stats


async def run_queries(
    client: EngineClient, requests: Sequence[Request], *, timeout_s: float, on_first_token: Callable[[], None]
) -> AsyncGenerator[tuple[int, TokenDelta], None]:
    """Yield (index of the request, delta) as they come, until every query has finished.

        Closing the generator, or the failure of any query, closes all queries' streams, which cancels the queries.

    Raises:
            OsdError: raised by the engine client.
            ApiError: a query failed, or the queries took longer than `timeout_s`.
    """
    arrived: asyncio.Queue[tuple[int, TokenDelta | Exception]] = asyncio.Queue(_MAX_WAITING_DELTAS)
    pumps = [asyncio.create_task(_pump(client, index, request, arrived)) for index, request in enumerate(requests)]
    deadline_s = asyncio.get_running_loop().time() + timeout_s
    try:
        num_running, has_token = len(requests), False
        while num_running:
            try:
                async with asyncio.timeout_at(deadline_s):
                    index, item = await arrived.get()
            except TimeoutError:
                raise ApiError(504, f"The answer took longer than {timeout_s:g} s.", code="timeout") from None
            if isinstance(item, Exception):
                raise item
            if item.token_ids and not has_token:
                has_token = True
                on_first_token()
            if item.finish_reason is not None:
                _check_finish(item)
                num_running -= 1
            yield index, item
    finally:
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


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
        log.error("query %s failed in the engine: %s", delta.request_id, delta.error)
        if delta.error == NOT_FINITE:
            raise ApiError(500, f"This query cannot be answered: {NOT_FINITE}.", code="not_finite")
        raise internal_error()
    if delta.finish_reason == "cancelled":
        raise EngineUnavailableError("the engine cancelled this query; try again")
