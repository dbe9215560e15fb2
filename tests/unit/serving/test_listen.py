"""The port that `osd serve` takes."""

from __future__ import annotations

import asyncio
import socket

import pytest

from osd.config.settings import load_config
from osd.records.errors import OsdError
from serving.preflight import exposure_warning
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


@pytest.mark.parametrize(
    ("address", "keys", "warns"),
    [
        ("127.0.0.1", [], False),
        ("127.8.8.8", [], False),
        ("::1", [], False),
        ("0.0.0.0", [], True),
        ("::", [], True),
        ("192.0.2.7", [], True),
        ("0.0.0.0", ["ab"], False),
    ],
)
def test_others_can_reach_it_and_need_no_key(address: str, keys: list[str], warns: bool) -> None:
    warning = exposure_warning(load_config(flags={"server": {"api_keys_sha256": keys}}), address)
    assert (warning is not None) == warns
    if warning:
        assert address in warning and "server.api_keys_sha256" in warning and "\n" not in warning
