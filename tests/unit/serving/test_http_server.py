"""Stopping the server: admin pages that are open do not hold it up, and what it cuts leaves one line in the log."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256

import httpx
import pytest

from osd.config.settings import load_config
from serving.app import create_app
from serving.http_server import HttpServer
from tests.kit.fake_status import fake_service
from tests.kit.fakes import FakeCodec, FakeEngineClient
from tests.kit.waiting import PATIENCE_S, wait_for

TOKEN = "a-long-admin-token"


class Running:
    """A server in a thread."""

    def __init__(self, engine: FakeEngineClient, grace_s: int) -> None:
        config = load_config()
        app = create_app(config, engine, FakeCodec(), admin_token_sha256=sha256(TOKEN.encode()).hexdigest())
        listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self.server = HttpServer(app, config.server, grace_s=grace_s)
        self._thread = threading.Thread(target=self.server.run, kwargs={"sockets": [listener]}, daemon=True)
        self._thread.start()
        wait_for(lambda: self.server.started, "uvicorn to start")

    def stop(self) -> None:
        self.server.should_exit = True

    def wait_until_stopped(self) -> None:
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()


@contextmanager
def running(engine: FakeEngineClient, *, grace_s: int) -> Iterator[Running]:
    server = Running(engine, grace_s)
    try:
        yield server
    finally:
        server.stop()
        server.wait_until_stopped()


def test_an_open_admin_page_does_not_hold_up_the_stop(caplog: pytest.LogCaptureFixture) -> None:
    """Its stream ends as a whole answer does, long before the grace is over."""
    began_s = time.monotonic()
    with running(FakeEngineClient(service=fake_service()), grace_s=1000) as server:
        with httpx.stream(
            "GET", f"{server.url}/admin/api/live", headers={"Authorization": f"Bearer {TOKEN}"}, timeout=PATIENCE_S
        ) as stream:
            chunks = stream.iter_text()
            assert next(chunks).startswith("event: snapshot\n")
            server.stop()
            for _ in chunks:  # an end that is no end of an answer would raise
                pass
        server.wait_until_stopped()
    assert time.monotonic() - began_s < 1000
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_an_answer_that_is_cut_is_told_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    engine = FakeEngineClient(pause_after=2)  # and never goes on
    body = {"model": "fake-model", "prompt": "hello", "stream": True}
    with running(engine, grace_s=1) as server:
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=PATIENCE_S) as stream:
            chunks = stream.iter_text()
            next(chunks)
            server.stop()
            with pytest.raises(httpx.RemoteProtocolError):
                list(chunks)
        server.wait_until_stopped()
    told = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [(record.getMessage(), record.exc_info) for record in told] == [
        ("Cancel 1 running task(s), timeout graceful shutdown exceeded", None)
    ]
    assert engine.closed, "the query was cancelled"
