"""No request body above the limit reaches a route, declared or not."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.errors import ApiError

# A client that sends its whole body before it reads would see a reset instead of our answer; so this many times the
# limit is read and thrown away before the connection is closed on it.
_DISCARDED_PER_LIMIT = 16


class BodyLimit:
    """Reads the body, counting, before the app sees it; 413 above `max_bytes`.

    Counting what arrives covers chunked bodies and a `Content-Length` that lies.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        chunks: list[bytes] = []
        num_bytes, more = 0, True
        while more and num_bytes <= self.max_bytes * _DISCARDED_PER_LIMIT:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            chunk = message.get("body", b"")
            num_bytes += len(chunk)
            if num_bytes <= self.max_bytes:
                chunks.append(chunk)
            else:
                chunks.clear()
            more = message.get("more_body", False)
        if num_bytes > self.max_bytes:
            text = f"The request body is larger than {self.max_bytes} bytes."
            error = ApiError(413, text, code="body_too_large", headers={"Connection": "close"} if more else None)
            await error.response()(scope, receive, send)
            return
        await self.app(scope, _replay(b"".join(chunks), receive), send)


def _replay(body: bytes, receive: Receive) -> Receive:
    """First the body in one piece, then whatever comes (a disconnect)."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return pending.pop() if pending else await receive()

    return replayed
