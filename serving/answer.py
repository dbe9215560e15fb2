"""Answers an HTTP request from the engine's deltas, streamed or whole; chat and completions differ in their `View`."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol

from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response

from osd.records.query import QueryStats, Request, TokenDelta
from serving.generation import Choice, run_queries
from serving.guards.disconnect import unless_disconnected
from serving.services import Services
from serving.wire.request_base import GenerationFields, StreamOptions
from serving.wire.sse import EventStream
from serving.wire.stats import counts, osd_field, usage

Deltas = AsyncGenerator[tuple[int, TokenDelta], None]
Payload = dict[str, Any]


class View(Protocol):
    """Builds the JSON of choices in one API's shape. One instance serves one request, so it may hold state."""

    object: str
    chunk_object: str
    id_prefix: str

    def choice(self, index: int, choice: Choice) -> Payload:
        """The JSON of a finished choice."""
        ...

    def opening(self, index: int) -> Payload | None:
        """The JSON with which a stream opens a choice; None for nothing."""
        ...

    def piece(self, index: int, delta: TokenDelta) -> Payload | None:
        """The JSON that a stream sends for a delta; None for nothing, but never if it has a finish reason."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer in progress."""

    answer_id: str
    created_s: int
    model: str
    view: View
    prompt_tokens: int
    num_choices: int

    async def whole(self, deltas: Deltas) -> Payload:
        """The whole answer, once every choice has finished."""
        choices = [Choice() for _ in range(self.num_choices)]
        async with aclosing(deltas):
            async for index, delta in deltas:
                choices[index].add(delta)
        stats = [choice.stats for choice in choices]
        shaped = [self.view.choice(index, choice) for index, choice in enumerate(choices)]
        return {**self._head(self.view.object), "choices": shaped, **self._totals(stats)}

    async def chunks(
        self, first: tuple[int, TokenDelta], rest: Deltas, options: StreamOptions
    ) -> AsyncGenerator[Payload, None]:
        """One chunk per delta. The last chunk carries `osd`, and the token counts if they were requested."""
        head = self._head(self.view.chunk_object)
        include_usage = options.include_usage
        opened: set[int] = set()
        stats: list[QueryStats] = []
        output_tokens = 0

        def usage_so_far() -> Payload:
            if not include_usage:
                return {}
            return {"usage": counts(self.prompt_tokens, output_tokens) if options.continuous_usage_stats else None}

        async with aclosing(_chain(first, rest)) as deltas:
            async for index, delta in deltas:
                if index not in opened:
                    opened.add(index)
                    if (opening := self.view.opening(index)) is not None:
                        yield {**head, "choices": [opening], **usage_so_far()}
                output_tokens += len(delta.token_ids)
                if delta.finish_reason is not None:
                    stats.append(delta.stats or QueryStats())
                is_last = len(stats) == self.num_choices and not include_usage
                if (piece := self.view.piece(index, delta)) is not None:
                    last = {"osd": osd_field(stats)} if is_last else {}
                    yield {**head, "choices": [piece], **usage_so_far(), **last}
        if include_usage:
            yield {**head, "choices": [], **self._totals(stats)}

    def _head(self, kind: str) -> Payload:
        return {"id": self.answer_id, "object": kind, "created": self.created_s, "model": self.model}

    def _totals(self, stats: Sequence[QueryStats]) -> Payload:
        return {"usage": usage(self.prompt_tokens, stats), "osd": osd_field(stats)}


async def respond(
    http: HttpRequest,
    services: Services,
    body: GenerationFields,
    view: View,
    queries: Sequence[Request],
) -> Response:
    """Run the queries and answer. An error before the first token still determines the HTTP status."""
    answer = Answer(
        answer_id=view.id_prefix + http.state.request_id,
        created_s=int(time.time()),
        model=services.codec.model_id,
        view=view,
        prompt_tokens=sum(len(query.prompt_ids) for query in queries) // body.n,
        num_choices=len(queries),
    )
    started_s, route = http.state.started_s, http.scope["route"].path
    deltas = run_queries(
        services.client,
        queries,
        timeout_s=services.config.server.request_timeout_s,
        on_first_token=lambda: services.metrics.http.observe_first_token(route, time.monotonic() - started_s),
    )
    if not body.stream:
        return JSONResponse(await unless_disconnected(http.receive, answer.whole(deltas)))
    first = await unless_disconnected(http.receive, _next(deltas))
    return EventStream(answer.chunks(first, deltas, body.stream_options or StreamOptions()))


async def _next(deltas: Deltas) -> tuple[int, TokenDelta]:
    return await anext(deltas)


async def _chain(first: tuple[int, TokenDelta], rest: Deltas) -> Deltas:
    async with aclosing(rest):
        yield first
        async for item in rest:
            yield item
