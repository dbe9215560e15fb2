"""Middleware around every request: request id, metrics, and a 500 for unexpected exceptions."""

from __future__ import annotations

import logging
import re
import time
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING
from uuid import uuid4

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from osd.machine.logs import request_id as logged_as
from serving.observing.http_metrics import HttpMetrics
from serving.observing.tracing import Tracing
from serving.wire.errors import CLIENT_CLOSED_REQUEST, ApiError, error_response, internal_error

if TYPE_CHECKING:
    from opentelemetry.trace import Span

log = logging.getLogger(__name__)


_REQUEST_ID = re.compile(r"[A-Za-z0-9._:=@/+-]{1,128}")
_BAD_REQUEST_ID = ApiError(
    400,
    "The header X-Request-Id must be 1 to 128 letters, digits or any of . _ : = @ / + -; change it or leave it out.",
    param="X-Request-Id",
    code="invalid_value",
)


class Observe:
    """Middleware around the whole app.

    Sets `request.state.request_id` (the client's `X-Request-Id`, or a new one; sent back in the same header),
    `request.state.answer_id` (of this server alone, so that two requests with one id stay apart) and
    `request.state.started_s` (monotonic).

    Answers without a `Cache-Control` header get `no-store`. An unexpected exception is logged with the request's id and
    answered as a 500 without details.
    """

    def __init__(self, app: ASGIApp, metrics: HttpMetrics, tracing: Tracing | None = None) -> None:
        self.app = app
        self.metrics, self.tracing = metrics, tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request (ASGI)."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        answer_id, started_s = uuid4().hex, time.monotonic()
        given = _header(scope, b"x-request-id")
        request_id = given if given is not None and _REQUEST_ID.fullmatch(given) else answer_id
        scope.setdefault("state", {}).update(request_id=request_id, answer_id=answer_id, started_s=started_s)
        logged_as.set(request_id)
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
                if not any(name.lower() == b"cache-control" for name, _ in headers):
                    headers.append((b"cache-control", b"no-store"))
                message["headers"] = headers
            await send(message)

        try:
            if given is not None and request_id != given:
                await error_response(_BAD_REQUEST_ID, scope)(scope, receive, send_with_id)
            else:
                with self._span(scope, request_id) as span:
                    await self.app(scope, receive, send_with_id)
                    if span is not None:
                        span.update_name(f"{scope['method']} {getattr(scope.get('route'), 'path', 'unmatched')}")
                        span.set_attribute("http.response.status_code", status)
        except Exception:
            log.exception("request %s failed", request_id)
            if status == 0:
                await error_response(internal_error(), scope)(scope, receive, send_with_id)
            status = 500
        finally:
            route = getattr(scope.get("route"), "path", "unmatched")
            duration_s = time.monotonic() - started_s
            self.metrics.observe_request(scope["method"], route, status or CLIENT_CLOSED_REQUEST, duration_s)

    def _span(self, scope: Scope, request_id: str) -> AbstractContextManager[Span | None]:
        if self.tracing is None:
            return nullcontext()
        headers = {name: value for name in ("traceparent", "tracestate") if (value := _header(scope, name.encode()))}
        return self.tracing.request(scope["method"], headers, request_id)


def _header(scope: Scope, name: bytes) -> str | None:
    return next((value.decode("latin-1") for header, value in scope["headers"] if header.lower() == name), None)
