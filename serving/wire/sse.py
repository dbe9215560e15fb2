"""Server-sent events: framing, the end mark, errors in mid-stream, disconnects."""

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


# The standard ends a line at CR and LF, which JSON escapes; clients that read with `str.splitlines` (httpx's
# `iter_lines` does) end it at these too.
_LINE_BREAKS = str.maketrans({"\x85": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"})


def frame(payload: Mapping[str, Any]) -> bytes:
    """One event: a single `data:` line, however a client finds the ends of lines."""
    text = json.dumps(payload, ensure_ascii=False, separators=(",", ":"))
    return b"data: " + (text if text.isascii() else text.translate(_LINE_BREAKS)).encode() + b"\n\n"


async def frames(events: AsyncGenerator[Mapping[str, Any], None]) -> AsyncGenerator[bytes, None]:
    """Frame every event. An error is an event too, for the status has long been sent; the end mark follows it."""
    try:
        async for event in events:
            yield frame(event)
    except Exception as error:  # the boundary to the client, who gets only what `to_api_error` tells
        yield frame(to_api_error(error).body())
    finally:
        await events.aclose()
    yield DONE


class EventStream(StreamingResponse):
    """Sends events as they come, and closes their source the moment the client goes away."""

    def __init__(self, events: AsyncGenerator[Mapping[str, Any], None]) -> None:
        self._frames = frames(events)
        headers = {"X-Accel-Buffering": "no"}  # keeps reverse proxies from collecting events
        super().__init__(self._frames, media_type="text/event-stream", headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI. Starlette's own notices a disconnect of a quiet stream only with some servers."""
        try:
            await unless_disconnected(receive, self.stream_response(send))
        except (ClientDisconnect, OSError):  # nobody is left to be told
            pass
        finally:
            await self._frames.aclose()
