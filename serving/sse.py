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
"""What a stream sends; None where a ping keeps the connection open."""


def frame(payload: Mapping[str, Any]) -> bytes:
    """One event as a single `data:` line, for any client's notion of line ends."""
    text = json.dumps(payload, ensure_ascii=False, separators=(",", ":"))
    return b"data: " + (text if text.isascii() else text.translate(_LINE_BREAKS)).encode() + b"\n\n"


def named_frame(payload: Mapping[str, Any]) -> bytes:
    """One event whose `type` is its name, too."""
    return f"event: {payload['type']}\n".encode() + frame(payload)


@dataclass(frozen=True, slots=True, kw_only=True)
class Framing:
    """How one API sends events."""

    frame: Callable[[Mapping[str, Any]], bytes] = frame
    ping: bytes = b": ping\n\n"
    """Sent while there is nothing to tell; clients pass over it."""
    error: Callable[[ApiError], Mapping[str, Any]] = ApiError.body
    """The event that tells an error in mid-stream."""
    end: bytes = DONE


async def frames(events: Events, framing: Framing) -> AsyncGenerator[bytes, None]:
    """Frame every event. An error is an event too, for the status has long been sent; the end mark follows it."""
    try:
        async for event in events:
            yield framing.ping if event is None else framing.frame(event)
    except Exception as error:  # the boundary to the client, who gets only what `to_api_error` tells
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
