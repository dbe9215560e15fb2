"""OpenTelemetry traces of requests, queries and rounds (optional: `pip install 'osd[otel]'`).

A request is a span, a child of the caller's if it sends W3C trace context (`traceparent`). Each of its queries is a
span below it, with a span each for waiting, for reading the prompt and for the rounds. Rounds are events of the latter:
the first ones, then fewer and fewer. No span holds text of prompts or answers.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from osd.config.server import ServerConfig
from osd.records.errors import OsdError
from osd.records.query import QueryStats, Request, TokenDelta

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

_NUM_FIRST_ROUNDS = 16
_ROUND_EVENTS = 128
"""Most events of one query (the library's own limit)."""


class QueryTrace:
    """The span of one query.

    Args:
        tracer: makes spans.
        request: the query.
    """

    def __init__(self, tracer: Tracer, request: Request) -> None:
        self._tracer, self._began_s = tracer, time.time()
        attributes: dict[str, Any] = {
            "osd.request_id": request.request_id,
            "osd.domain": request.domain,
            "gen_ai.request.max_tokens": request.params.max_tokens,
            "gen_ai.request.temperature": request.params.temperature,
        }
        self._span = tracer.start_span("query", attributes=attributes)
        self._stores = request.store
        self._rounds: list[tuple[int, dict[str, Any]]] = []
        self._num_rounds = 0

    def take(self, delta: TokenDelta) -> None:
        """Note a round; end the span at the last delta."""
        if delta.round is not None:
            self._num_rounds += 1
            if is_sampled(self._num_rounds) and len(self._rounds) < _ROUND_EVENTS:
                round_ = delta.round
                noted = {
                    "osd.round": self._num_rounds,
                    "osd.arm": round_.drafter_name,
                    "osd.drafter_version": round_.drafter_version,
                    "osd.proposed": round_.proposed,
                    "osd.accepted": round_.accepted,
                }
                self._rounds.append((time.time_ns(), noted))
        if delta.finish_reason is not None:
            self._end(delta.finish_reason, delta.stats or QueryStats())

    def close(self) -> None:
        """End the span of a query whose answer nobody reads any more."""
        if self._span.is_recording():
            self._end("abandoned", QueryStats())

    def _end(self, reason: str, stats: QueryStats) -> None:
        from opentelemetry import trace

        attributes: dict[str, Any] = {
            "gen_ai.response.finish_reasons": [reason],
            "gen_ai.usage.input_tokens": stats.prompt_tokens,
            "gen_ai.usage.output_tokens": stats.output_tokens,
            "osd.reused_tokens": stats.reused_tokens,
            "osd.rounds": stats.rounds,
            "osd.proposed": stats.proposed,
            "osd.accepted": stats.accepted,
            "osd.committed": stats.committed,
            "osd.outcome_stored": self._stores and reason != "error",
        }
        self._span.set_attributes(attributes)
        below = trace.set_span_in_context(self._span)
        at_s = self._began_s
        parts = {"queue": stats.queue_ms, "prefill": stats.prefill_ms, "rounds": stats.draft_ms + stats.verify_ms}
        for name, took_ms in parts.items():
            end_s = at_s + took_ms / 1e3
            part = self._tracer.start_span(name, context=below, start_time=round(at_s * 1e9))
            if name == "rounds":
                for at_ns, noted in self._rounds:
                    part.add_event("round", noted, timestamp=at_ns)
            part.end(end_time=round(end_s * 1e9))
            at_s = end_s
        self._span.end()


class Tracing:
    """Makes the spans of one app.

    Args:
        tracer: of OpenTelemetry.
    """

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    @contextmanager
    def request(self, method: str, headers: Mapping[str, str], request_id: str) -> Iterator[Span]:
        """Open the span of an HTTP request, and make it the current one within the context."""
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        caller = TraceContextTextMapPropagator().extract(dict(headers))
        attributes = {"http.request.method": method, "osd.request_id": request_id}
        with self._tracer.start_as_current_span(
            method, context=caller, kind=SpanKind.SERVER, attributes=attributes
        ) as span:
            yield span

    def query(self, request: Request) -> QueryTrace:
        """The span of a query, below the current request's."""
        return QueryTrace(self._tracer, request)


def is_sampled(number: int) -> bool:
    """Whether a query's round is noted: the first 16, then one in 2, in 4, in 8 … of every further power of two."""
    if number <= _NUM_FIRST_ROUNDS:
        return True
    return number % (1 << (number.bit_length() - _NUM_FIRST_ROUNDS.bit_length() + 1)) == 0


def open_tracing(config: ServerConfig) -> Tracing | None:
    """Tracing to the configured collector; None if there is none.

    Raises:
        OsdError: the packages are missing.
    """
    if not config.otlp_endpoint:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
    except ImportError:
        raise OsdError("server.otlp_endpoint needs OpenTelemetry: pip install 'osd[otel]'") from None
    provider = TracerProvider(
        resource=Resource.create({"service.name": "osd"}),
        sampler=ParentBased(TraceIdRatioBased(config.trace_share)),
    )
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=config.otlp_endpoint)))
    return Tracing(provider.get_tracer("osd"))
