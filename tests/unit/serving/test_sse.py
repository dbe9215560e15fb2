from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from starlette.types import Message

from osd.config.settings import load_config
from osd.records.errors import EngineUnavailableError
from serving.answering.sse import DONE, Framing, frame, frames
from serving.app import create_app
from tests.kit.fakes import FakeCodec, FakeEngineClient
from tests.kit.http_client import CHAT, COMPLETION, http_client, post_scope


def events_of(text: str) -> list[dict[str, Any]]:
    """Every event but the end mark, which must be last."""
    *events, end, empty = text.split("\n\n")
    assert (end, empty) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in events]


def test_a_frame_is_one_line() -> None:
    assert frame({"a": "é\n"}) == 'data: {"a":"é\\n"}\n\n'.encode()


def test_a_frame_is_one_line_to_clients_that_split_at_every_line_break_of_unicode() -> None:
    text = "".join(chr(point) for point in range(0x20)) + "a\x7f\x85b\u2028c\u2029d😀\ufeff"
    line, blank = frame({"text": text}).decode().splitlines()
    assert (json.loads(line.removeprefix("data: ")), blank) == ({"text": text}, "")


async def test_frames_end_with_the_mark_even_after_an_error() -> None:
    async def source() -> AsyncGenerator[dict[str, Any] | None, None]:
        yield {"n": 1}
        raise EngineUnavailableError("gone")

    sent = [one async for one in frames(source(), Framing())]
    assert sent[0] == b'data: {"n":1}\n\n'
    assert json.loads(sent[1].removeprefix(b"data: "))["error"]["message"] == "gone"
    assert sent[2:] == [DONE]


async def test_chat_stream() -> None:
    async with http_client() as client:
        answer = await client.post("/v1/chat/completions", json={**CHAT, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    chunks = events_of(answer.text)
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta.get("content", "") for delta in deltas) == "Hello world"
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert ["osd" in chunk for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert all("usage" not in chunk for chunk in chunks)


async def test_usage_comes_in_a_last_chunk_of_its_own() -> None:
    body = {**COMPLETION, "stream": True, "stream_options": {"include_usage": True}, "n": 2}
    async with http_client() as client:
        chunks = events_of((await client.post("/v1/completions", json=body)).text)
    *pieces, last = chunks
    assert all(piece["usage"] is None and "osd" not in piece for piece in pieces)
    assert last["choices"] == []
    assert last["usage"] == {
        "prompt_tokens": 2,
        "completion_tokens": 22,
        "total_tokens": 24,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert last["osd"]["rounds"] == 8
    for index in range(2):
        mine = [piece["choices"][0] for piece in pieces if piece["choices"][0]["index"] == index]
        assert "".join(choice["text"] for choice in mine) == "Hello world"
        assert mine[-1]["finish_reason"] == "stop"


@pytest.mark.parametrize("path_and_body", [("/v1/chat/completions", CHAT), ("/v1/completions", COMPLETION)])
async def test_every_chunk_can_carry_the_counts_so_far(path_and_body: tuple[str, dict[str, Any]]) -> None:
    path, body = path_and_body
    options = {"include_usage": True, "continuous_usage_stats": True}
    async with http_client() as client:
        whole = (await client.post(path, json=body)).json()["usage"]
        chunks = events_of((await client.post(path, json={**body, "stream": True, "stream_options": options})).text)
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    opening = [0] if "messages" in body else []
    assert counts == [*opening, 1, 4, 7, 10, 11, 11]
    assert all(chunk["usage"]["prompt_tokens"] == whole["prompt_tokens"] for chunk in chunks)
    assert chunks[-1]["usage"] == whole and chunks[-1]["choices"] == []


async def test_counts_in_every_chunk_belong_to_include_usage() -> None:
    """As in vLLM's server."""
    body = {**COMPLETION, "stream": True, "stream_options": {"continuous_usage_stats": True}}
    async with http_client() as client:
        chunks = events_of((await client.post("/v1/completions", json=body)).text)
    assert all("usage" not in chunk for chunk in chunks)


async def test_osd_field_sums_the_choices() -> None:
    async with http_client() as client:
        answer = (await client.post("/v1/chat/completions", json={**CHAT, "n": 2})).json()
    assert answer["osd"] == {
        "rounds": 8,
        "proposed": 32,
        "accepted": 12,
        "committed": 20,
        "acceptance_rate": 12 / 32,
        "acceptance_length": 20 / 8,
        "drafter_version": 3,
        "drafter_versions": [2, 3],
        "drafters": ["feature"],
        "domain": "default",
        "queue_ms": 2.0,
        "prefill_ms": 4.0,
        "draft_ms": 6.0,
        "verify_ms": 8.0,
    }


async def test_ratios_of_nothing_are_null() -> None:
    async with http_client() as client:
        answer = (await client.post("/v1/completions", json={**COMPLETION, "max_tokens": 1})).json()
    assert answer["osd"]["rounds"] == 0
    assert answer["osd"]["acceptance_rate"] is None and answer["osd"]["acceptance_length"] is None


async def test_an_error_in_mid_stream_is_an_event() -> None:
    engine = FakeEngineClient(fail_after=(2, EngineUnavailableError("no engine came back")))
    async with http_client(engine) as client:
        answer = await client.post("/v1/chat/completions", json={**CHAT, "stream": True})
    assert answer.status_code == 200
    *pieces, last = events_of(answer.text)
    assert "".join(piece["choices"][0]["delta"].get("content", "") for piece in pieces) == "Hell"
    assert last["error"]["code"] == "engine_unavailable"


class Wire:
    """One ASGI request whose client hangs up when told to."""

    def __init__(self, body: dict[str, Any]) -> None:
        self._body = json.dumps(body).encode()
        self._is_sent = False
        self.hung_up = asyncio.Event()
        self.answered: list[Message] = []
        self.scope = post_scope("/v1/chat/completions")

    async def receive(self) -> Message:
        if not self._is_sent:
            self._is_sent = True
            return {"type": "http.request", "body": self._body, "more_body": False}
        await self.hung_up.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.answered.append(message)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("pause_after", [0, 2])
async def test_a_disconnect_cancels_every_query_at_once(stream: bool, pause_after: int) -> None:
    """In the queue (no delta yet) as in mid-answer, while the engine is silent."""
    engine = FakeEngineClient(pause_after=pause_after)
    app = create_app(load_config(), engine, FakeCodec(), admin_token_sha256="")
    wire = Wire({**CHAT, "stream": stream, "n": 2})
    answering = asyncio.create_task(app(wire.scope, wire.receive, wire.send))
    await engine.paused.wait()
    assert engine.closed == []
    wire.hung_up.set()
    await asyncio.wait_for(answering, 5)
    assert sorted(engine.closed) == sorted(query.request_id for query in engine.requests)
    assert len(engine.closed) == 2
