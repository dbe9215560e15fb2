"""What happens before a route's own code: who asks is checked, then the body is read, bounded in bytes and time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive

from serving.services import Services, services_of
from serving.wire.errors import ApiError

Guard = Callable[[Request, Services], Awaitable[None]]


async def anyone(request: Request, services: Services) -> None:
    """The guard of routes that need no secret."""


def admits(guard: Guard, *security: str, max_body_bytes: int | None = None) -> type[APIRoute]:
    """A route class for `APIRouter(route_class=…)`.

    Args:
        guard: raises an ApiError for those who may not.
        security: OpenAPI names of what the guard asks for.
        max_body_bytes: a limit below the configured one.

    FastAPI reads and parses a body before it runs dependencies, so a guard that is a dependency would let strangers
    keep the server busy with bodies.
    """

    class AdmittingRoute(APIRoute):
        def __init__(self, *args: Any, openapi_extra: dict[str, Any] | None = None, **kwargs: Any) -> None:
            extra = {"security": [{name: []} for name in security], **(openapi_extra or {})}
            super().__init__(*args, openapi_extra=extra if security else openapi_extra, **kwargs)

        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def admit(request: Request) -> Response:
                services = services_of(request)
                await guard(request, services)
                if request.method == "GET":  # no route of ours reads a body there
                    return await handle(request)
                server = services.config.server
                max_bytes = min(server.max_body_bytes, max_body_bytes or server.max_body_bytes)
                body = await read_body(request, max_bytes=max_bytes, timeout_s=server.receive_timeout_s)
                return await handle(Request(request.scope, _replay(body, request.receive)))

            return admit

    return AdmittingRoute


async def read_body(request: Request, *, max_bytes: int, timeout_s: float) -> bytes:
    """The whole body. Counting what arrives covers chunked bodies and a `Content-Length` that lies.

    Raises:
        ApiError: 413 for more than `max_bytes`, as soon as that is known; 408 when it takes longer than `timeout_s`.
        ClientDisconnect: the client went away.
    """
    too_large = ApiError(413, f"The request body is larger than {max_bytes} bytes.", code="body_too_large")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                body += message.get("body", b"")
                if len(body) > max_bytes:
                    raise too_large
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError:
        text = f"The request body did not arrive within {timeout_s:g} s."
        raise ApiError(408, text, code="request_timeout", headers={"Connection": "close"}) from None


def _replay(body: bytes, receive: Receive) -> Receive:
    """First the body in one piece, then whatever comes (a disconnect)."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return pending.pop() if pending else await receive()

    return replayed
