"""Traces over OTLP/HTTP to a collector that reads the protocol: one from the HTTP request to the outcome."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="not installed (osd[otel])")
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from osd.config.settings import load_config
from serving.app import create_app
from tests.kit.engine_kit import ListRecorder
from tests.kit.http_server import serve
from tests.kit.local_client import local_client
from tests.kit.waiting import PATIENCE_S, wait_for

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
OTHER_TRACE = "11112222333344445555666677778888"
SECRET = "a secret prompt"


@dataclass(frozen=True, slots=True)
class Span:
    """What a test reads of a span of the protocol."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    attributes: dict[str, Any]
    events: list[dict[str, Any]]
    took_ns: int


@dataclass
class Collector:
    """A collector's endpoint, and what it received."""

    url: str
    bodies: list[bytes] = field(default_factory=list)

    def spans(self) -> list[Span]:
        return [
            Span(
                span.name,
                span.trace_id.hex(),
                span.span_id.hex(),
                span.parent_span_id.hex(),
                _plain(span.attributes),
                [_plain(event.attributes) for event in span.events],
                span.end_time_unix_nano - span.start_time_unix_nano,
            )
            for body in self.bodies
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def services(self) -> set[Any]:
        resources = (one for body in self.bodies for one in ExportTraceServiceRequest.FromString(body).resource_spans)
        return {_plain(one.resource.attributes)["service.name"] for one in resources}


def _plain(attributes: Any) -> dict[str, Any]:
    """Key to value, of the protocol's attributes."""
    found = {one.key: (one.value.WhichOneof("value"), one.value) for one in attributes}
    return {key: getattr(value, kind) for key, (kind, value) in found.items()}


@pytest.fixture
def collector() -> Iterator[Collector]:
    received: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # noqa: N802 - the library's name
            assert self.path == "/v1/traces" and self.headers["Content-Type"] == "application/x-protobuf"
            received.append(self.rfile.read(int(self.headers["Content-Length"])))
            body = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Not on the terminal."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield Collector(f"http://127.0.0.1:{server.server_port}/v1/traces", received)
    server.shutdown()
    thread.join(PATIENCE_S)
    server.server_close()


@dataclass
class Traced:
    """osd's HTTP server over a tiny engine, with its traces and outcomes."""

    url: str
    collector: Collector
    recorder: ListRecorder

    def ask(self, trace: str, *, sampled: bool) -> None:
        headers = {"traceparent": f"00-{trace}-{PARENT}-{sampled:02d}"}
        body = {"model": "tiny", "prompt": SECRET, "max_tokens": 12, "temperature": 0, "osd": {"domain": "code"}}
        httpx.post(f"{self.url}/v1/completions", json=body, headers=headers, timeout=60).raise_for_status()


@pytest.fixture
def traced(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> Iterator[Traced]:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")  # ms until a batch is sent
    config = load_config(flags={"server": {"otlp_endpoint": collector.url, "trace_share": 0.0}})
    recorder = ListRecorder()
    with (
        local_client(recorder=recorder) as (client, codec),
        serve(create_app(config, client, codec, admin_token_sha256="")) as url,
    ):
        yield Traced(url, collector, recorder)


def test_one_trace_from_the_request_over_its_rounds_to_the_outcome(traced: Traced) -> None:
    traced.ask(TRACE, sampled=True)
    wait_for(lambda: len(traced.collector.spans()) == 5, "the whole trace")
    spans = {span.name: span for span in traced.collector.spans()}
    assert traced.collector.services() == {"osd"}
    assert {span.trace_id for span in spans.values()} == {TRACE}, "the caller's trace goes on"
    request, query = spans["POST /v1/completions"], spans["query"]
    assert request.parent_id == PARENT and query.parent_id == request.span_id
    for name in ("queue", "prefill", "rounds"):
        assert spans[name].parent_id == query.span_id
    (outcome,) = traced.recorder.outcomes.values()
    assert query.attributes["osd.request_id"] == outcome.request_id
    assert query.attributes["osd.outcome_stored"] is True and query.attributes["osd.domain"] == outcome.domain == "code"
    told = [(one["osd.arm"], one["osd.proposed"], one["osd.accepted"]) for one in spans["rounds"].events]
    assert told and sum(accepted for _, _, accepted in told) == query.attributes["osd.accepted"]
    assert len(told) == query.attributes["osd.rounds"]
    assert all(span.took_ns >= 0 for span in spans.values()) and spans["rounds"].took_ns > 0
    assert SECRET.encode() not in b"".join(traced.collector.bodies)


def test_the_callers_decision_not_to_sample_holds(traced: Traced) -> None:
    traced.ask(OTHER_TRACE, sampled=False)
    traced.ask(TRACE, sampled=True)
    wait_for(lambda: len(traced.collector.spans()) == 5, "the trace that is sampled")
    assert {span.trace_id for span in traced.collector.spans()} == {TRACE}
