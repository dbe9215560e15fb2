"""Slow senders, by raw sockets against a real server."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from hashlib import sha256
from http.client import HTTPResponse
from urllib.parse import urlsplit

import pytest

from osd.config.settings import load_config
from osd.records.query import Request, TokenDelta
from serving.app import create_app
from tests.kit.fakes import FakeCodec, FakeEngineClient
from tests.kit.http_client import CHAT
from tests.kit.http_server import serve

PATIENCE_S = 0.6
"""More than a whole request ever takes to arrive here, as long as every test of this file has to wait."""
SOON_S = 20.0


class SlowEngineClient(FakeEngineClient):
    """Answers later than any sender's time is over."""

    async def generate(self, request: Request) -> AsyncIterator[TokenDelta]:
        await asyncio.sleep(3 * PATIENCE_S)
        async for delta in super().generate(request):
            yield delta


@pytest.fixture(scope="module")
def address() -> Iterator[tuple[str, int]]:
    keys = [sha256(b"key").hexdigest()]
    config = load_config(flags={"server": {"api_keys_sha256": keys, "receive_timeout_s": PATIENCE_S}})
    app = create_app(config, SlowEngineClient(), FakeCodec(), admin_token_sha256="")
    with serve(app, receive_timeout_s=PATIENCE_S) as url:
        parts = urlsplit(url)
        assert parts.hostname and parts.port
        yield parts.hostname, parts.port


@contextmanager
def connected(address: tuple[str, int]) -> Iterator[socket.socket]:
    with socket.create_connection(address, timeout=SOON_S) as connection:
        yield connection


def everything(connection: socket.socket) -> bytes:
    """What comes until the server closes."""
    received = b""
    while piece := connection.recv(65536):
        received += piece
    return received


def test_headers_that_never_end(address: tuple[str, int]) -> None:
    with connected(address) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: osd\r\nX-Slow: ")
        answer = everything(connection)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 Request Timeout\r\n") and b"connection: close" in head.lower()
    assert json.loads(body)["error"]["code"] == "request_timeout"


def test_a_byte_now_and_then_buys_no_time(address: tuple[str, int]) -> None:
    with connected(address) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: osd\r\nX-Slow: ")
        started_s = time.monotonic()
        connection.settimeout(PATIENCE_S / 10)
        while True:
            assert time.monotonic() - started_s < SOON_S
            try:
                connection.sendall(b"a")
                if answer := connection.recv(65536):
                    break
            except TimeoutError:
                continue
    assert answer.startswith(b"HTTP/1.1 408 ")


def test_a_connection_that_asks_nothing(address: tuple[str, int]) -> None:
    with connected(address) as connection:
        assert everything(connection) == b""


def test_a_second_request_that_never_ends(address: tuple[str, int]) -> None:
    with connected(address) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: osd\r\n\r\nGET /hea")
        answer = everything(connection)
    assert answer.startswith(b"HTTP/1.1 200 ") and b"HTTP/1.1 408 " in answer


def test_a_body_that_never_ends(address: tuple[str, int]) -> None:
    with connected(address) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: osd\r\nAuthorization: Bearer key\r\n"
            b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
        )
        assert everything(connection).startswith(b"HTTP/1.1 408 ")


def test_a_body_without_a_key_is_neither_waited_for_nor_waited_out(address: tuple[str, int]) -> None:
    """401 comes at once; the rest of the body, which nobody reads, has as long as a body has."""
    with connected(address) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: osd\r\nContent-Type: application/json\r\n"
            b"Content-Length: 10000000\r\n\r\n"
        )
        assert connection.recv(65536).startswith(b"HTTP/1.1 401 ")
        connection.sendall(bytes(1_000_000))
        while connection.recv(65536):
            pass


def answer_of(connection: socket.socket) -> bytes:
    """One whole answer of a connection that stays open: head and body may come apart."""
    answer = HTTPResponse(connection)
    answer.begin()
    body = answer.read()
    return f"HTTP/1.1 {answer.status} ".encode() + body


def test_a_body_that_ends_after_its_answer_leaves_no_connection_open_for_ever(address: tuple[str, int]) -> None:
    with connected(address) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: osd\r\nContent-Length: 5\r\n\r\n")
        assert answer_of(connection).startswith(b"HTTP/1.1 401 ")
        connection.sendall(b"12345")
        assert everything(connection) == b""


def test_a_body_that_breaks_after_its_answer_gets_no_second_one(
    address: tuple[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    with connected(address) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: osd\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert answer_of(connection).startswith(b"HTTP/1.1 401 ")
        connection.sendall(b"no length of a chunk\r\n")
        assert everything(connection) == b""
    assert not [record for record in caplog.records if record.name == "asyncio"], "a stranger causes no traceback"


def test_a_slow_answer_is_no_slow_request(address: tuple[str, int]) -> None:
    body = json.dumps({**CHAT, "stream": True}).encode()
    with connected(address) as connection:
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: osd\r\nAuthorization: Bearer key\r\nConnection: close\r\n"
            b"Content-Type: application/json\r\nContent-Length: " + str(len(body)).encode() + b"\r\n\r\n" + body
        )
        answer = everything(connection)
    assert answer.startswith(b"HTTP/1.1 200 ") and b"data: [DONE]" in answer


def test_a_kept_connection_may_rest_between_requests(address: tuple[str, int]) -> None:
    with connected(address) as connection:
        for _ in range(2):
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: osd\r\n\r\n")
            assert answer_of(connection).startswith(b"HTTP/1.1 200 ")
            time.sleep(2 * PATIENCE_S)  # longer than a sender may take


def test_a_request_that_states_its_length_twice_is_refused_and_what_follows_is_not_read(
    address: tuple[str, int],
) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: osd\r\nContent-Type: application/json\r\n"
    smuggled = b"GET /health HTTP/1.1\r\nHost: osd\r\n\r\n"
    with connected(address) as connection:
        connection.sendall(head + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + smuggled)
        answer, _, body = everything(connection).partition(b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body)["error"]["code"] == "invalid_http"  # one answer, and nothing after it


def test_what_is_no_http_is_refused_in_the_shape_of_other_errors(address: tuple[str, int]) -> None:
    for sent in (b"nonsense\r\n\r\n", b"GET /health HTTP/1.1\r\nHost: osd\r\nX-Large: " + b"a" * 20_000):
        with connected(address) as connection:
            connection.sendall(sent)
            head, _, body = everything(connection).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 ")
        assert json.loads(body)["error"]["code"] == "invalid_http"
