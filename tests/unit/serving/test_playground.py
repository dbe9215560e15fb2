"""The playground: every token with where it came from, and plain decoding beside it; nothing is learnt from it."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Any

from osd.records.query import Request
from tests.kit.fakes import FakeCodec, FakeEngineClient
from tests.kit.http_client import http_client

TOKEN = "a-long-admin-token"


async def ask(engine: FakeEngineClient, codec: FakeCodec | None = None, **body: Any) -> list[dict[str, Any]]:
    async with http_client(engine, codec, admin_token_sha256=sha256(TOKEN.encode()).hexdigest()) as client:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        answer = await client.post("/admin/api/playground", json={"prompt": "hi", **body}, headers=headers)
        assert answer.status_code == 200, answer.text
    return [json.loads(frame.split("data: ")[1]) for frame in answer.text.split("\n\n") if frame]


async def test_tokens_are_told_apart_by_where_they_came_from() -> None:
    engine = FakeEngineClient(answer="Hello world", tokens_per_delta=3)  # each round proposes four and accepts two
    *rounds, end = await ask(engine)
    kinds = [(token["text"], token["kind"]) for one in rounds for token in one["tokens"]]
    assert "".join(text for text, _ in kinds) == "Hello world"
    assert [kind for _, kind in kinds[:4]] == ["first", "accepted", "accepted", "recovered"]
    assert (rounds[1]["arm"], rounds[1]["version"], rounds[1]["proposed"], rounds[1]["accepted"]) == (
        "feature",
        3,
        4,
        2,
    )
    assert end["type"] == "end" and end["output_tokens"] == 11 and end["osd"]["accepted"] == 6


async def test_all_accepted_ends_with_a_bonus_token() -> None:
    *rounds, _ = await ask(FakeEngineClient(answer="Hello!", tokens_per_delta=5))  # four proposed, four accepted
    assert [token["kind"] for token in rounds[1]["tokens"]] == ["accepted"] * 4 + ["bonus"]


async def test_the_query_is_not_learnt_from_and_plain_means_length_0() -> None:
    engine = FakeEngineClient()
    await ask(engine, plain=True, temperature=0.5, max_tokens=7, seed=3)
    await ask(engine, codec=FakeCodec(has_chat_template=False))
    plain, free = engine.requests
    assert isinstance(plain, Request) and not plain.store and plain.domain == "playground"
    assert (plain.speculation_length, free.speculation_length) == (0, None)
    assert (plain.params.temperature, plain.params.max_tokens, plain.params.seed) == (0.5, 7, 3)
    assert free.prompt_ids == (ord("h"), ord("i"))


async def test_an_error_during_the_stream_is_told() -> None:
    engine = FakeEngineClient(fail_after=(1, RuntimeError("secret")))
    *_, last = await ask(engine)
    assert last["type"] == "error" and "secret" not in json.dumps(last)


async def test_absurd_wishes_are_refused_by_name() -> None:
    async with http_client(FakeEngineClient(), admin_token_sha256=sha256(TOKEN.encode()).hexdigest()) as client:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        for body, field in (({"prompt": ""}, "prompt"), ({"prompt": "x", "max_tokens": 10**6}, "max_tokens")):
            answer = await client.post("/admin/api/playground", json=body, headers=headers)
            assert answer.status_code == 400 and answer.json()["error"]["param"] == field
        assert (await client.post("/admin/api/playground", json={"prompt": "x"})).status_code == 401
