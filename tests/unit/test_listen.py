"""The port that `osd serve` takes."""

from __future__ import annotations

import asyncio
import socket

import pytest

from osd.types import OsdError
from serving.serve import listen, url_of


async def test_pieces_of_a_stream_do_not_wait_for_one_another() -> None:
    """Left to Nagle's algorithm, each waits for the client's acknowledgement of the one before: 40 ms."""
    told: asyncio.Queue[bool] = asyncio.Queue()

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        at_once = writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        told.put_nowait(bool(at_once))
        writer.close()

    with listen("127.0.0.1", 0) as listener:
        async with await asyncio.start_server(serve, sock=listener):
            _, writer = await asyncio.open_connection(*listener.getsockname())
            assert await told.get()
            writer.close()
            await writer.wait_closed()


def test_a_port_in_use_is_said_before_anything_is_loaded() -> None:
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        assert url_of(listener) == f"http://127.0.0.1:{port}"
        with pytest.raises(OsdError, match=f"cannot listen on 127.0.0.1:{port}: .*--port"):
            listen("127.0.0.1", port)
