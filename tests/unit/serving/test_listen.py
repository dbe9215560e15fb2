"""The port that `osd serve` takes."""

from __future__ import annotations

import asyncio
import socket
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from osd.config.settings import load_config
from osd.records.errors import OsdError
from osd.text.codec import TextCodec
from serving import serve
from serving.http_server import HttpServer
from serving.preflight import exposure_warning
from serving.serve import Serving, listen, url_of
from tests.kit.fakes import FakeCodec, FakeEngineClient


async def test_pieces_of_a_stream_do_not_wait_for_one_another() -> None:
    """Left to Nagle's algorithm, each waits for the client's acknowledgement of the one before: 40 ms."""
    told: asyncio.Queue[bool] = asyncio.Queue()

    async def tell(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        at_once = writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        told.put_nowait(bool(at_once))
        writer.close()

    with listen("127.0.0.1", 0) as listener:
        async with await asyncio.start_server(tell, sock=listener):
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
        ("localhost", [], False),
        ("osd.example.org", [], True),
    ],
)
def test_others_can_reach_it_and_need_no_key(address: str, keys: list[str], warns: bool) -> None:
    warning = exposure_warning(load_config(flags={"server": {"api_keys_sha256": keys}}), address)
    assert (warning is not None) == warns
    if warning:
        assert address in warning and "server.api_keys_sha256" in warning and "\n" not in warning


@pytest.mark.parametrize(("host", "warns"), [("0.0.0.0", True), ("127.0.0.1", False)])
def test_a_start_warns_of_it(
    host: str, warns: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    topology = SimpleNamespace(
        client=FakeEngineClient(), context_tokens=64, drafter="feature v1", computes="CPU", context="context 64 tokens"
    )
    started: list[Serving] = []
    monkeypatch.setattr(serve, "configured_target", lambda *_: SimpleNamespace(folder=tmp_path, target_id="tiny"))
    monkeypatch.setattr(serve, "start", lambda *_, **options: nullcontext(topology))
    monkeypatch.setattr(serve, "exclude_from_gc", lambda: None)
    monkeypatch.setattr(TextCodec, "configured", lambda *_: FakeCodec())
    monkeypatch.setattr(HttpServer, "run", lambda self, sockets: None)
    with listen(host, 0) as listener:
        serve._serve_target(load_config(), listener, lambda *_: None, started.append, lambda line: None)
    assert [serving.model for serving in started] == ["tiny"]
    assert [message.startswith(f"listening on {host}: ") for message in caplog.messages] == [True] * warns
