"""Traces: one from the HTTP request to the rounds, below the caller's, without any text."""

from __future__ import annotations

import httpx
import pytest

pytest.importorskip("opentelemetry.sdk")
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from osd.config.settings import load_config
from osd.records.errors import EngineUnavailableError
from serving.app import create_app
from serving.observing.tracing import Tracing, is_sampled
from tests.kit.fakes import FakeCodec, FakeEngineClient

CALLER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


async def traced(engine: FakeEngineClient, headers: dict[str, str], **body: object) -> dict[str, ReadableSpan]:
    spans, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    tracing = Tracing(provider.get_tracer("osd"))
    app = create_app(load_config(), engine, FakeCodec(), admin_token_sha256="", tracing=tracing)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://osd.test") as client:
        request = {"model": "fake-model", "prompt": "a secret prompt", **body}
        answer = await client.post("/v1/completions", json=request, headers=headers)
        assert answer.status_code == 200, answer.text
    return {span.name: span for span in spans.get_finished_spans()}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_is_one_trace_below_its_caller(stream: bool) -> None:
    engine = FakeEngineClient(answer="Hello world", tokens_per_delta=3)
    spans = await traced(engine, {"traceparent": CALLER, "x-request-id": "req-1"}, stream=stream)
    request, query, rounds = spans["POST /v1/completions"], spans["query"], spans["rounds"]
    assert request.parent is not None and f"{request.parent.span_id:016x}" == "00f067aa0ba902b7"
    assert f"{request.context.trace_id:032x}" == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert query.parent is not None and query.parent.span_id == request.context.span_id
    assert rounds.parent is not None and rounds.parent.span_id == query.context.span_id
    assert request.attributes is not None and request.attributes["osd.request_id"] == "req-1"
    assert request.attributes["http.response.status_code"] == 200
    events = [dict(event.attributes or {}) for event in rounds.events]
    assert [(event["osd.arm"], event["osd.proposed"], event["osd.accepted"]) for event in events[:2]] == [
        ("feature", 4, 2)
    ] * 2
    assert query.attributes is not None and query.attributes["osd.accepted"] == 6
    assert query.attributes["osd.outcome_stored"] is True
    everything = "".join(span.to_json() for span in spans.values())
    assert "secret" not in everything and "Hello" not in everything


async def test_a_query_that_breaks_off_is_in_the_trace_too() -> None:
    engine = FakeEngineClient(answer="Hello world", fail_after=(2, EngineUnavailableError("gone")))
    spans = await traced(engine, {}, stream=True)
    attributes = spans["query"].attributes
    assert attributes is not None and attributes["gen_ai.response.finish_reasons"] == ("abandoned",)
    assert len(spans["rounds"].events) == 1


async def test_without_a_caller_a_trace_begins_here() -> None:
    spans = await traced(FakeEngineClient(), {})
    assert spans["POST /v1/completions"].parent is None


def test_rounds_are_noted_less_and_less() -> None:
    noted = [number for number in range(1, 2001) if is_sampled(number)]
    assert noted[:18] == [*range(1, 17), 18, 20]
    assert len(noted) < 80
