"""Runs before a route's own code: authenticates the client, then reads the body, limited in bytes and time."""

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
    """The guard of routes that need no secret: admits everyone."""


def admits(guard: Guard, *security: str, max_body_bytes: int | None = None) -> type[APIRoute]:
    """A route class for `APIRouter(route_class=…)` that calls `guard` before the body is read.

    FastAPI reads and parses a body before it runs dependencies, so with a guard as a dependency, unauthenticated
    clients could keep the server busy with bodies.

    Args:
        guard: raises an ApiError for clients that are not admitted.
        security: names of the OpenAPI security schemes that the guard checks.
        max_body_bytes: a limit below the configured one.
    """

    class AdmittingRoute(APIRoute):
        def __init__(self, *args: Any, openapi_extra: dict[str, Any] | None = None, **kwargs: Any) -> None:
            extra = {"security": [{name: []} for name in security], **(openapi_extra or {})}
            super().__init__(*args, openapi_extra=extra if security else openapi_extra, **kwargs)

        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def admit(request: Request) -> Response:
                services = services_of(request)
                _check_length(request)
                await guard(request, services)
                if request.method == "GET":  # our GET routes read no body
                    return await handle(request)
                _check_encoding(request.headers.get("content-encoding", ""))
                server = services.config.server
                max_bytes = min(server.max_body_bytes, max_body_bytes or server.max_body_bytes)
                body = await read_body(request, max_bytes=max_bytes, timeout_s=server.receive_timeout_s)
                return await handle(Request(request.scope, _replay(body, request.receive)))

            return admit

    return AdmittingRoute


def _check_length(request: Request) -> None:
    """Refuse a request that states its length twice, of which a proxy before osd may believe the other (RFC 9112, 6.3).

    The connection is closed, since what follows may be meant as the rest of the body.
    """
    if {"content-length", "transfer-encoding"} <= set(request.headers):
        message = "The request has both Content-Length and Transfer-Encoding; send one of them."
        raise ApiError(400, message, code="invalid_http", headers={"Connection": "close"})


def _check_encoding(encoding: str) -> None:
    """Refuse a body that is compressed."""
    if encoding.strip().lower() not in ("", "identity"):
        message = f"The body is compressed (Content-Encoding: {encoding}), which osd does not read; send it as it is."
        raise ApiError(400, message, param="Content-Encoding", code="invalid_value")


async def read_body(request: Request, *, max_bytes: int, timeout_s: float) -> bytes:
    """The whole body. Counts the bytes that arrive, which also limits chunked bodies and a false `Content-Length`.

    Raises:
        ApiError: 413 for more than `max_bytes`, as soon as that is known; 408 if it takes longer than `timeout_s`.
        ClientDisconnect: the client disconnected.
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
    """An ASGI `receive` that returns the body first, then what the connection's own returns (a disconnect)."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return pending.pop() if pending else await receive()

    return replayed
