"""An app over fakes, and an HTTP client that calls it in the same event loop."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx

from osd.config.settings import load_config
from serving.admin.sign_in import Sessions
from serving.app import create_app
from serving.codec import Codec
from tests.kit.fakes import FakeCodec, FakeEngineClient

CHAT = {"model": "fake-model", "messages": [{"role": "user", "content": "hi"}]}
COMPLETION = {"model": "fake-model", "prompt": "hi"}


def post_scope(path: str, *headers: tuple[bytes, bytes]) -> dict[str, Any]:
    """The ASGI scope of a POST of JSON, for tests that act as the server."""
    return {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
        "http_version": "1.1",
        "headers": [(b"content-type", b"application/json"), *headers],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
        "asgi": {"version": "3.0", "spec_version": "2.3"},
    }


@asynccontextmanager
async def http_client(
    engine: FakeEngineClient | None = None,
    codec: Codec | None = None,
    *,
    server: Mapping[str, Any] | None = None,
    target: Mapping[str, Any] | None = None,
    admin_token_sha256: str = "",
    sessions: Sessions | None = None,
) -> AsyncIterator[httpx.AsyncClient]:
    """Faults end as a 500, as over a real socket."""
    app = create_app(
        load_config(flags={"server": server or {}, "target": target or {}}),
        engine or FakeEngineClient(),
        codec or FakeCodec(),
        admin_token_sha256=admin_token_sha256,
        sessions=sessions,
    )
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://osd.test") as client:
        yield client
