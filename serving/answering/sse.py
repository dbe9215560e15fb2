"""Server-sent events: framing, end mark, errors during a stream, disconnects."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi.responses import StreamingResponse
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from serving.guards.disconnect import unless_disconnected
from serving.wire.errors import ApiError, to_api_error

DONE = b"data: [DONE]\n\n"

# The standard ends a line at CR and LF, which JSON escapes; clients that read with `str.splitlines` (httpx's
# `iter_lines` does) end it at these too.
_LINE_BREAKS = str.maketrans({"\x85": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"})

Events = AsyncGenerator[Mapping[str, Any] | None, None]
"""The events of a stream; None stands for a ping, which keeps the connection open."""


def frame(payload: Mapping[str, Any]) -> bytes:
    """One event as a single `data:` line, for any client's notion of line ends."""
    text = json.dumps(payload, ensure_ascii=False, separators=(",", ":"))
    return b"data: " + (text if text.isascii() else text.translate(_LINE_BREAKS)).encode() + b"\n\n"


def named_frame(payload: Mapping[str, Any]) -> bytes:
    """One event, named by its `type`."""
    return f"event: {payload['type']}\n".encode() + frame(payload)


@dataclass(frozen=True, slots=True, kw_only=True)
class Framing:
    """The framing of one API's events."""

    frame: Callable[[Mapping[str, Any]], bytes] = frame
    ping: bytes = b": ping\n\n"
    """Sent during silence; clients ignore it."""
    error: Callable[[ApiError], Mapping[str, Any]] = ApiError.body
    """The event for an error during a stream."""
    end: bytes = DONE


async def frames(events: Events, framing: Framing) -> AsyncGenerator[bytes, None]:
    """Frame every event, then the end mark. An error becomes an event, since the status has been sent already."""
    try:
        async for event in events:
            yield framing.ping if event is None else framing.frame(event)
    except Exception as error:  # `to_api_error` decides what the client may see of it
        yield framing.frame(framing.error(to_api_error(error)))
    finally:
        await events.aclose()
    if framing.end:
        yield framing.end


class EventStream(StreamingResponse):
    """Sends events as they come, and closes their source as soon as the client disconnects."""

    def __init__(self, events: Events, framing: Framing) -> None:
        self._frames = frames(events, framing)
        headers = {"X-Accel-Buffering": "no"}  # keeps reverse proxies from collecting events
        super().__init__(self._frames, media_type="text/event-stream", headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request (ASGI). Starlette's version misses the disconnect of a quiet stream with some servers."""
        try:
            await unless_disconnected(receive, self.stream_response(send))
        except (ClientDisconnect, OSError):  # the client is gone
            pass
        finally:
            await self._frames.aclose()
