"""Server-sent events: framing, end mark, errors during a stream, disconnects."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from fastapi.responses import StreamingResponse
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from serving.guards.disconnect import unless_disconnected
from serving.wire.errors import to_api_error

DONE = b"data: [DONE]\n\n"


# Clients that split lines with `str.splitlines` (httpx's `iter_lines`) also split at these characters. The standard's
# own line ends, CR and LF, are escaped by JSON.
_LINE_BREAKS = str.maketrans({"\x85": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"})


def frame(payload: Mapping[str, Any]) -> bytes:
    """One event as a single `data:` line, for any client's notion of line ends."""
    text = json.dumps(payload, ensure_ascii=False, separators=(",", ":"))
    return b"data: " + (text if text.isascii() else text.translate(_LINE_BREAKS)).encode() + b"\n\n"


async def frames(events: AsyncGenerator[Mapping[str, Any], None]) -> AsyncGenerator[bytes, None]:
    """Frame every event, then the end mark. An error becomes an event, since the status has been sent already."""
    try:
        async for event in events:
            yield frame(event)
    except Exception as error:  # `to_api_error` decides what the client may see of it
        yield frame(to_api_error(error).body())
    finally:
        await events.aclose()
    yield DONE


class EventStream(StreamingResponse):
    """Sends events as they come, and closes their source as soon as the client disconnects."""

    def __init__(self, events: AsyncGenerator[Mapping[str, Any], None]) -> None:
        self._frames = frames(events)
        headers = {"X-Accel-Buffering": "no"}  # keeps reverse proxies from buffering events
        super().__init__(self._frames, media_type="text/event-stream", headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request (ASGI). Starlette's version misses the disconnect of a quiet stream with some servers."""
        try:
            await unless_disconnected(receive, self.stream_response(send))
        except (ClientDisconnect, OSError):  # the client is gone
            pass
        finally:
            await self._frames.aclose()
