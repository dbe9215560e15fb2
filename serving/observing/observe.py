"""Middleware around every request: request id, metrics, and a 500 for unexpected exceptions."""

from __future__ import annotations

import logging
import time
from uuid import uuid4

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.observing.http_metrics import HttpMetrics
from serving.wire.errors import CLIENT_CLOSED_REQUEST, internal_error

log = logging.getLogger(__name__)


class Observe:
    """Middleware around the whole app. Sets `request.state.request_id` and `request.state.started_s` (monotonic).

    Answers without a `Cache-Control` header get `no-store`. An unexpected exception is logged with the request's id and
    answered as a 500 without details.
    """

    def __init__(self, app: ASGIApp, metrics: HttpMetrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request (ASGI)."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id, started_s = uuid4().hex, time.monotonic()
        scope.setdefault("state", {}).update(request_id=request_id, started_s=started_s)
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
            await self.app(scope, receive, send_with_id)
        except Exception:
            log.exception("request %s failed", request_id)
            if status == 0:
                await internal_error().response()(scope, receive, send_with_id)
            status = 500
        finally:
            route = getattr(scope.get("route"), "path", "unmatched")
            duration_s = time.monotonic() - started_s
            self.metrics.observe_request(scope["method"], route, status or CLIENT_CLOSED_REQUEST, duration_s)
