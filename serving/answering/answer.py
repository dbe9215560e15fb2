"""Answers an HTTP request from the engine's deltas, streamed or whole, in the shape of one of the APIs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, Protocol

from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response

from osd.records.query import Request, TokenDelta
from serving.answering.beam_search import BeamSearch, search_beams
from serving.answering.generation import Choice, Deltas, in_intervals, run_queries
from serving.answering.sse import Events, EventStream, Framing
from serving.guards.disconnect import unless_disconnected
from serving.observing.tracing import QueryTrace
from serving.services import Services

Payload = dict[str, Any]


class Answer(Protocol):
    """Builds an answer in one API's shape. One instance serves one request, so it may hold state."""

    framing: Framing

    def whole(self, choices: Sequence[Choice]) -> Payload:
        """The answer, once every choice has finished."""
        ...

    def begin(self) -> Iterable[Payload]:
        """The events of a stream before the first token."""
        ...

    def read(self, index: int, delta: TokenDelta) -> Iterable[Payload]:
        """The events of a stream for a delta of one choice."""
        ...

    def end(self) -> Iterable[Payload]:
        """The events of a stream after the last delta."""
        ...


async def respond(
    http: HttpRequest,
    services: Services,
    answer: Answer,
    queries: Sequence[Request],
    *,
    stream: bool,
    interval: int = 1,
    search: BeamSearch | None = None,
) -> Response:
    """Run the queries and answer.

    An error before the first token, and within `server.ping_interval_s`, still determines the HTTP status.

    Args:
        http: the request.
        services: of the app.
        answer: shapes the answer.
        queries: one for each choice.
        stream: whether it is streamed.
        interval: least number of a choice's tokens in one event of a stream, except in its first and its last one.
        search: how the answers are searched for; None: they are sampled.
    """
    deltas = observed_deltas(http, services, queries, pings=stream, search=search)
    if not stream:
        return JSONResponse(await unless_disconnected(http.receive, _whole(answer, deltas, len(queries))))
    if interval > 1:
        deltas = in_intervals(deltas, interval)
    first = await unless_disconnected(http.receive, _next(deltas))
    return EventStream(_events(answer, first, deltas), answer.framing)


def observed_deltas(
    http: HttpRequest,
    services: Services,
    queries: Sequence[Request],
    *,
    pings: bool,
    search: BeamSearch | None = None,
) -> Deltas:
    """The deltas of the queries, which are run as they are read; metrics and traces take note of them.

    Args:
        http: the request that asks for them.
        services: of the app.
        queries: one for each choice.
        pings: whether there is a None after each silence of `server.ping_interval_s`.
        search: how the answers are searched for; None: they are sampled.
    """
    started_s, route, server = http.state.started_s, http.scope["route"].path, services.config.server
    traces = [services.tracing.query(query) for query in queries] if services.tracing else []

    def note(index: int, delta: TokenDelta) -> None:
        if delta.finish_reason is not None:
            routed = delta.stats.domain if delta.stats else ""
            services.metrics.queries.observe(delta, routed or queries[index].domain)
        if traces:
            traces[index].take(delta)

    run: Callable[..., Deltas] = run_queries if search is None else partial(search_beams, search=search)
    deltas = run(
        services.client,
        queries,
        timeout_s=server.request_timeout_s,
        on_first_token=lambda: services.metrics.http.observe_first_token(route, time.monotonic() - started_s),
        on_delta=note,
        ping_interval_s=server.ping_interval_s if pings else None,
    )
    return _traced(deltas, traces) if traces else deltas


async def _traced(deltas: Deltas, traces: Sequence[QueryTrace]) -> Deltas:
    """The deltas. When they end, also by an error, all spans are closed."""
    try:
        async with aclosing(deltas):
            async for item in deltas:
                yield item
    finally:
        for trace in traces:
            trace.close()


async def _whole(answer: Answer, deltas: Deltas, num_choices: int) -> Payload:
    choices = [Choice() for _ in range(num_choices)]
    async with aclosing(deltas):
        async for item in deltas:
            if item is not None:
                index, delta = item
                choices[index].add(delta)
    return answer.whole(choices)


async def _events(answer: Answer, first: tuple[int, TokenDelta] | None, rest: Deltas) -> Events:
    async with aclosing(_chain(first, rest)) as deltas:
        for payload in answer.begin():
            yield payload
        async for item in deltas:
            if item is None:
                yield None
                continue
            for payload in answer.read(*item):
                yield payload
    for payload in answer.end():
        yield payload


async def _next(deltas: Deltas) -> tuple[int, TokenDelta] | None:
    return await anext(deltas)


async def _chain(first: tuple[int, TokenDelta] | None, rest: Deltas) -> Deltas:
    async with aclosing(rest):
        yield first
        async for item in rest:
            yield item
