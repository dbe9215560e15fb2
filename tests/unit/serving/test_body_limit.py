from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest

from osd.config.settings import load_config
from serving.app import create_app
from tests.kit.fakes import FakeCodec, FakeEngineClient
from tests.kit.http_client import CHAT, http_client
from tests.kit.http_server import serve

MIB = 1 << 20
JSON = {"Content-Type": "application/json"}


def too_large(answer: httpx.Response) -> bool:
    return answer.status_code == 413 and answer.json()["error"]["code"] == "body_too_large"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The default limit, 4 MiB."""
    with serve(create_app(load_config(), FakeEngineClient(), FakeCodec(), admin_token_sha256="")) as base_url:
        yield base_url


def test_50_mb_with_a_length(url: str) -> None:
    assert too_large(httpx.post(f"{url}/v1/chat/completions", content=bytes(50 * MIB), headers=JSON, timeout=60))
    assert httpx.get(f"{url}/health").status_code == 200


def test_50_mb_in_chunks(url: str) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(50):
            yield bytes(MIB)

    assert too_large(httpx.post(f"{url}/v1/chat/completions", content=chunks(), headers=JSON, timeout=60))


def test_every_route_has_the_limit(url: str) -> None:
    headers = {**JSON, "X-OSD-Admin": "1"}
    assert too_large(httpx.post(f"{url}/admin/api/login", content=bytes(5 * MIB), headers=headers, timeout=60))
    assert httpx.post(f"{url}/nowhere", content=bytes(5 * MIB), headers=JSON, timeout=60).status_code == 404


async def test_the_limit_is_exact_and_chunks_are_joined() -> None:
    body = json.dumps(CHAT).encode().ljust(1024)

    async def halves(whole: bytes) -> AsyncIterator[bytes]:
        yield whole[:500]
        yield whole[500:]

    async with http_client(server={"max_body_bytes": 1024}) as client:
        for content in (body, halves(body)):
            answer = await client.post("/v1/chat/completions", content=content, headers=JSON)
            assert answer.status_code == 200
        for content in (body + b" ", halves(body + b" ")):
            assert too_large(await client.post("/v1/chat/completions", content=content, headers=JSON))


async def test_an_endless_body_is_cut_off() -> None:
    num_sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal num_sent
        while True:
            num_sent += 1
            yield bytes(1024)

    async with http_client(server={"max_body_bytes": 1024}) as client:
        answer = await client.post("/v1/chat/completions", content=endless(), headers=JSON)
    assert too_large(answer)
    assert num_sent == 2
