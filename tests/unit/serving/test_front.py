"""What browsers, proxies and loggers expect of the HTTP front: request ids, CORS, a path prefix, pings."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import httpx
import pytest

from osd.config.settings import ConfigError, load_config
from osd.records.errors import EngineUnavailableError
from serving.app import create_app
from tests.kit.fakes import FakeCodec, FakeEngineClient
from tests.kit.http_client import CHAT, http_client, post_scope

SITE = "https://chat.example.org"


class TestRequestId:
    @pytest.mark.parametrize("given", ["bench-9fa28d6e-0", "Root=1-67891233-abcdef", "a" * 128])
    async def test_the_clients_own_is_sent_back(self, given: str) -> None:
        engine = FakeEngineClient()
        async with http_client(engine) as client:
            answers = [
                await client.post("/v1/chat/completions", json=CHAT, headers={"X-Request-Id": given}) for _ in range(2)
            ]
        assert [answer.headers["x-request-id"] for answer in answers] == [given] * 2
        assert len({query.request_id for query in engine.requests}) == 2, "two requests shared a query id"

    async def test_a_new_one_is_of_the_answer(self) -> None:
        async with http_client() as client:
            answer = await client.post("/v1/chat/completions", json=CHAT)
        assert answer.json()["id"] == f"chatcmpl-{answer.headers['x-request-id']}"

    @pytest.mark.parametrize("given", ["", "two words", "a" * 129, 'quote"', "caf\xe9"])
    async def test_one_that_is_unfit_is_refused(self, given: str) -> None:
        async with http_client() as client:
            answer = await client.get("/v1/models", headers=[(b"X-Request-Id", given.encode("latin-1"))])
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "X-Request-Id"
        assert answer.headers["x-request-id"] not in ("", given)


class TestCors:
    async def preflight(self, path: str, origin: str = SITE, **server: object) -> httpx.Response:
        asks = {
            "Origin": origin,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type",
        }
        async with http_client(server=server) as client:
            return await client.options(path, headers=asks)

    async def test_none_by_default(self) -> None:
        answer = await self.preflight("/v1/chat/completions")
        assert answer.status_code == 405 and "access-control-allow-origin" not in answer.headers

    async def test_a_listed_site_may_ask(self) -> None:
        answer = await self.preflight("/v1/chat/completions", allowed_origins=[SITE])
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == SITE
        assert "authorization" in answer.headers["access-control-allow-headers"].lower()
        assert "access-control-allow-credentials" not in answer.headers
        other = await self.preflight("/v1/chat/completions", "https://evil.example", allowed_origins=[SITE])
        assert "access-control-allow-origin" not in other.headers

    async def test_errors_and_the_request_id_can_be_read(self) -> None:
        async with http_client(server={"allowed_origins": ["*"]}) as client:
            answer = await client.post("/v1/chat/completions", json={}, headers={"Origin": SITE})
        assert answer.status_code == 400
        assert answer.headers["access-control-allow-origin"] == "*"
        assert "X-Request-Id" in answer.headers["access-control-expose-headers"]

    @pytest.mark.parametrize("path", ["/admin", "/admin/api/status"])
    async def test_never_the_admin_page(self, path: str) -> None:
        answer = await self.preflight(path, allowed_origins=["*"])
        assert "access-control-allow-origin" not in answer.headers

    @pytest.mark.parametrize("origin", ["chat.example.org", "https://a.example/path", ""])
    def test_what_is_no_origin_is_refused(self, origin: str) -> None:
        with pytest.raises(ConfigError, match="server.allowed_origins"):
            load_config(flags={"server": {"allowed_origins": [origin]}})


class TestRootPath:
    @pytest.mark.parametrize("path", ["/llm/v1/models", "/v1/models"])
    async def test_with_and_without_the_prefix(self, path: str) -> None:
        async with http_client(server={"root_path": "/llm"}) as client:
            assert (await client.get(path)).status_code == 200
            assert (await client.get("/openapi.json")).json()["servers"] == [{"url": "/llm"}]

    @pytest.mark.parametrize("path", ["llm", "/llm/", "/", "/a b", "/a?b"])
    def test_what_is_no_path_is_refused(self, path: str) -> None:
        with pytest.raises(ConfigError, match="server.root_path"):
            load_config(flags={"server": {"root_path": path}})


class TestPings:
    async def stream(
        self,
        engine: FakeEngineClient,
        path: str = "/v1/chat/completions",
        body_fields: Mapping[str, Any] = CHAT,
        ping: bytes = b": ping\n\n",
    ) -> list[bytes]:
        """The body's pieces; the engine goes on after the third ping."""
        app = create_app(
            load_config(flags={"server": {"ping_interval_s": 0.01}}), engine, FakeCodec(), admin_token_sha256=""
        )
        sent: list[bytes] = []
        body = json.dumps({**body_fields, "stream": True}).encode()
        pending = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> dict[str, object]:
            if pending:
                return pending.pop()
            await asyncio.Event().wait()
            raise AssertionError

        async def send(message: object) -> None:
            assert isinstance(message, dict)
            if message.get("body"):
                sent.append(message["body"])
                if sent.count(ping) == 3:
                    engine.go_on.set()

        await asyncio.wait_for(app(post_scope(path), receive, send), 10)
        return sent

    async def test_a_queued_stream_begins_with_pings(self) -> None:
        sent = await self.stream(FakeEngineClient(pause_after=0))
        assert sent[:3] == [b": ping\n\n"] * 3
        assert sent[-1] == b"data: [DONE]\n\n"
        events = [json.loads(one.removeprefix(b"data: ")) for one in sent[3:-1] if one != b": ping\n\n"]
        assert "".join(event["choices"][0]["delta"].get("content", "") for event in events) == "Hello world"

    async def test_a_queued_message_begins_with_its_head_and_anthropics_pings(self) -> None:
        ping = b'event: ping\ndata: {"type":"ping"}\n\n'
        body = {**CHAT, "max_tokens": 50}
        sent = await self.stream(FakeEngineClient(pause_after=0), "/v1/messages", body, ping)
        assert sent[0].startswith(b"event: message_start\n") and sent[1:4] == [ping] * 3
        assert sent[-1] == b'event: message_stop\ndata: {"type":"message_stop"}\n\n'

    async def test_a_queued_response_begins_with_its_head(self) -> None:
        body = {"model": "fake-model", "input": "hi"}
        sent = await self.stream(FakeEngineClient(pause_after=0), "/v1/responses", body)
        assert [one.partition(b"\n")[0] for one in sent[:2]] == [
            b"event: response.created",
            b"event: response.in_progress",
        ]
        assert sent[2:5] == [b": ping\n\n"] * 3 and sent[-1].startswith(b"event: response.completed\n")

    async def test_a_silent_stream_has_pings_in_its_midst(self) -> None:
        sent = await self.stream(FakeEngineClient(pause_after=2))
        assert sent[0] != b": ping\n\n" and sent.count(b": ping\n\n") >= 3

    async def test_a_refusal_after_a_ping_is_an_event(self) -> None:
        sent = await self.stream(FakeEngineClient(pause_after=0, refuse=EngineUnavailableError("gone")))
        assert json.loads(sent[-2].removeprefix(b"data: "))["error"]["code"] == "engine_unavailable"


async def test_what_cannot_succeed_is_not_tried_again() -> None:
    async with http_client(FakeEngineClient(pause_after=0), server={"request_timeout_s": 0.01}) as client:
        answer = await client.post("/v1/chat/completions", json=CHAT)
    assert answer.status_code == 504 and answer.headers["x-should-retry"] == "false"
