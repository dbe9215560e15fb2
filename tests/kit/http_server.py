"""A real uvicorn on a free loopback port, in a thread of its own."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastapi import FastAPI

from osd.config.server import ServerConfig
from serving.http_server import HttpServer
from tests.kit.waiting import wait_for


@contextmanager
def serve(
    app: FastAPI,
    receive_timeout_s: float = 30.0,
    *,
    port: int = 0,
    ssl_certfile: Path | None = None,
    ssl_keyfile: Path | None = None,
) -> Iterator[str]:
    """Yield the base URL; stop the server at the end. Port 0 takes a free one."""
    listener = socket.create_server(("127.0.0.1", port))
    config = ServerConfig(
        receive_timeout_s=receive_timeout_s, ssl_certfile=str(ssl_certfile or ""), ssl_keyfile=str(ssl_keyfile or "")
    )
    server = HttpServer(app, config, grace_s=1)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    wait_for(lambda: server.started, "uvicorn to start")
    try:
        yield f"{'https' if ssl_certfile else 'http'}://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=20)
        listener.close()
