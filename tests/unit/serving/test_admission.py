"""Strangers are refused before a byte of their body is read, and bodies have to come in time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from hashlib import sha256
from typing import Any

import pytest
from starlette.types import Message

from osd.config.settings import load_config
from serving.app import create_app
from tests.kit.fakes import FakeCodec, FakeEngineClient
from tests.kit.http_client import CHAT, http_client, post_scope

JSON = {"Content-Type": "application/json"}


async def status_without_body(path: str, headers: list[tuple[bytes, bytes]], **server: Any) -> int:
    """Of a POST whose body must not be asked for."""
    app = create_app(load_config(flags={"server": server}), FakeEngineClient(), FakeCodec(), admin_token_sha256="")
    sent: list[Message] = []

    async def receive() -> Message:
        raise AssertionError("the body was asked for")

    async def send(message: Message) -> None:
        sent.append(message)

    await app(post_scope(path, *headers), receive, send)
    return int(sent[0]["status"])


SCHEMA = create_app(load_config(), FakeEngineClient(), FakeCodec(), admin_token_sha256="").openapi()
POSTS = [path for path, operations in SCHEMA["paths"].items() if "post" in operations] + ["/admin/api/playground"]
"""Every route that takes a body; the last is no part of the documented API."""


@pytest.mark.parametrize("headers", [[], [(b"authorization", b"Bearer wrong")]], ids=["none", "wrong"])
@pytest.mark.parametrize("path", POSTS)
async def test_no_key_or_token_no_body(path: str, headers: list[tuple[bytes, bytes]]) -> None:
    """The form that signs in takes none, but needs a header that other sites' pages cannot send."""
    length = (b"content-length", b"10000000")
    keys = [sha256(b"key").hexdigest()]
    expected = 403 if path.endswith("/login") else 401
    assert await status_without_body(path, [length, *headers], api_keys_sha256=keys) == expected


async def test_a_declared_length_beyond_the_limit_is_refused_unread() -> None:
    length = (b"content-length", b"5000")
    assert await status_without_body("/v1/completions", [length], max_body_bytes=4096) == 413


async def test_strangers_may_send_little_to_sign_in() -> None:
    headers = [(b"x-osd-admin", b"1"), (b"content-length", b"20000")]
    assert await status_without_body("/admin/api/login", headers) == 413


async def test_unknown_paths_read_nothing() -> None:
    assert await status_without_body("/v1/nothing", [(b"content-length", b"1000")]) == 404
    assert await status_without_body("/v1/models", [(b"content-length", b"1000")]) == 405


async def test_a_body_that_does_not_come_in_time() -> None:
    async def stalled() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(60)

    async with http_client(server={"receive_timeout_s": 0.05}) as client:
        answer = await client.post("/v1/chat/completions", content=stalled(), headers=JSON)
    assert answer.status_code == 408
    assert answer.json()["error"]["code"] == "request_timeout"
    assert answer.headers["connection"] == "close"


async def test_what_says_nothing_of_caching_is_not_kept() -> None:
    async with http_client() as client:
        for path in ("/v1/models", "/metrics", "/health", "/admin/api/status", "/nowhere", "/openapi.json"):
            assert (await client.get(path)).headers["cache-control"] == "no-store", path
        assert (await client.post("/v1/chat/completions", json=CHAT)).headers["cache-control"] == "no-store"
        assert (await client.get("/admin/page.js")).headers["cache-control"] == "no-cache"


async def test_head_is_get_without_the_body() -> None:
    gets = [path for path, operations in SCHEMA["paths"].items() if "get" in operations]
    paths = [path for path in gets if not path.startswith("/admin") and "{" not in path and path != "/ready"]
    async with http_client() as client:
        for path in (*paths, "/v1/models/fake-model", "/openapi.json", "/admin", "/admin/page.js"):
            got, head = await client.get(path), await client.head(path)
            assert head.status_code == got.status_code == 200 and head.content == b"" and got.content, path
            assert head.headers["content-type"] == got.headers["content-type"]
        assert (await client.head("/admin/api/status")).status_code == 401
        assert (await client.head("/ready")).status_code == 503
        assert (await client.head("/nowhere")).status_code == 404
        answer = await client.head("/v1/completions")
        assert answer.status_code == 405 and answer.headers["allow"] == "POST"
