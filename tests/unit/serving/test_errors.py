from __future__ import annotations

import gzip
import json
import logging
from collections.abc import Sequence
from hashlib import sha256
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from osd.records.errors import EngineUnavailableError, PromptTooLongError, QueueFullError
from osd.records.query import CONSTRAINT_FAILED, NOT_FINITE
from osd.text.offsets import TextOffsets
from serving.wire.chat_request import ChatRequest
from tests.kit.fakes import FakeCodec, FakeEngineClient
from tests.kit.http_client import CHAT, COMPLETION, http_client


async def error_of(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str) and error["message"]
    assert isinstance(error["code"], str) and error["code"]
    return dict(error)


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"tools": [{}]}, "tools[0].type", "missing_required_parameter"),
        ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
        ({"mystery": 1}, "mystery", "unknown_parameter"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type", None),
        ({"messages": [{"role": "user", "content": "x" * 128}]}, "messages", "context_length_exceeded"),
        ({"n": 129}, "n", "invalid_value"),
    ],
)
async def test_bad_fields_are_named(fields: dict[str, Any], param: str, code: str | None) -> None:
    async with http_client() as client:
        error = await error_of(await client.post("/v1/chat/completions", json={**CHAT, **fields}), 400)
    assert error["param"] == param
    assert param in error["message"] or code == "context_length_exceeded"
    assert error["code"] == (code or "invalid_value")
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("path", "body", "near"),
    [
        ("/v1/chat/completions", {**CHAT, "temprature": 1}, "temperature"),
        ("/v1/chat/completions", {**CHAT, "stream_options": {"include_usge": True}, "stream": True}, "include_usage"),
        ("/v1/completions", {**COMPLETION, "max_token": 1}, "max_tokens"),
    ],
)
async def test_a_misspelt_field_names_the_one_that_was_meant(path: str, body: dict[str, Any], near: str) -> None:
    async with http_client() as client:
        error = await error_of(await client.post(path, json=body), 400)
    assert error["code"] == "unknown_parameter" and error["message"].endswith(f"did you mean '{near}'?")


async def test_a_field_of_another_request_is_not_proposed_again() -> None:
    async with http_client() as client:
        body = {"model": "fake-model", "input": "hi", "logprobs": True}
        error = await error_of(await client.post("/v1/responses", json=body), 400)
    assert error["param"] == "logprobs" and error["message"].endswith("leave it out.")


async def test_a_compressed_body_is_refused() -> None:
    body, kind = gzip.compress(json.dumps(CHAT).encode()), {"content-type": "application/json"}
    async with http_client() as client:
        answer = await client.post("/v1/chat/completions", content=body, headers={**kind, "content-encoding": "gzip"})
        error = await error_of(answer, 400)
        plain = {**kind, "content-encoding": "identity"}
        assert (await client.post("/v1/chat/completions", json=CHAT, headers=plain)).status_code == 200
    assert error["param"] == "Content-Encoding" and "compressed" in error["message"]


class IdleCodec(FakeCodec):
    """Nothing is to be done with it."""

    def encode_text(self, text: str, *, add_special_tokens: bool = True) -> tuple[int, ...]:
        raise AssertionError("a prompt was tokenised")

    def offsets(self, prompt_ids: Sequence[int]) -> TextOffsets:
        raise AssertionError("an answer was prepared")


@pytest.mark.parametrize("fields", [{"prompt": ["a"] * 129}, {"prompt": [[1]] * 65, "n": 2, "logprobs": 0}])
async def test_too_many_choices_are_refused_before_anything_is_done_for_each(fields: dict[str, Any]) -> None:
    async with http_client(codec=IdleCodec()) as client:
        error = await error_of(await client.post("/v1/completions", json={**COMPLETION, **fields}), 400)
    assert (error["param"], error["code"]) == ("n", "invalid_value")


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content"),
        ("/v1/chat/completions", {"messages": [{"role": "user"}]}, "messages[0].content"),
        ("/v1/chat/completions", {"messages": ["hi"]}, "messages[0]"),
        ("/v1/chat/completions", {"messages": {"role": "user"}}, "messages"),
        ("/v1/chat/completions", {"stop": 5}, "stop"),
        ("/v1/chat/completions", {"stop": "\ud800"}, "stop"),
        ("/v1/chat/completions", {"stop": ["a", 5]}, "stop[1]"),
        ("/v1/chat/completions", {"stop": ["a", ""]}, "stop[1]"),
        ("/v1/chat/completions", {"metadata": {"a": 5}}, "metadata.a"),
        ("/v1/chat/completions", {"osd": {"domain": "two words"}}, "osd.domain"),
        ("/v1/chat/completions", {"osd": "x"}, "osd"),
        ("/v1/completions", {"prompt": "\ud800"}, "prompt"),
        ("/v1/completions", {"prompt": ["a", "\ud800"]}, "prompt[1]"),
        ("/v1/completions", {"prompt": [1, "a"]}, "prompt"),
        ("/v1/completions", {"logprobs": "x"}, "logprobs"),
    ],
)
async def test_fields_are_named_as_the_client_wrote_them(path: str, fields: dict[str, Any], param: str) -> None:
    """Steps of pydantic's own (`messages.0.content.str`) are nobody's business."""
    content = json.dumps({**(CHAT if "chat" in path else COMPLETION), **fields})
    async with http_client() as client:
        headers = {"Content-Type": "application/json"}
        error = await error_of(await client.post(path, content=content, headers=headers), 400)
    assert error["param"] == param and param in error["message"]
    assert error["code"] in ("invalid_type", "invalid_value", "missing_required_parameter")


async def test_a_type_that_does_not_fit_has_a_code_of_its_own() -> None:
    async with http_client() as client:
        for max_tokens, code in (("5", "invalid_type"), (0, "invalid_value")):
            answer = await client.post("/v1/completions", json={**COMPLETION, "max_tokens": max_tokens})
            assert (await error_of(answer, 400))["code"] == code


async def test_a_query_parameter_is_named() -> None:
    token = sha256(b"token").hexdigest()
    async with http_client(admin_token_sha256=token) as client:
        client.headers["Authorization"] = "Bearer token"
        error = await error_of(await client.get("/admin/api/events?limit=0"), 400)
    assert error["param"] == "limit" and "'limit'" in error["message"]


async def test_a_missing_field_is_named() -> None:
    async with http_client() as client:
        error = await error_of(await client.post("/v1/completions", json={"model": "fake-model"}), 400)
    assert (error["param"], error["code"]) == ("prompt", "missing_required_parameter")


async def test_too_long_a_prompt_tells_both_lengths() -> None:
    async with http_client(codec=FakeCodec(context_tokens=32)) as client:
        error = await error_of(await client.post("/v1/completions", json={**COMPLETION, "prompt": "x" * 40}), 400)
    assert error["code"] == "context_length_exceeded"
    assert "32" in error["message"] and "40" in error["message"]


@pytest.mark.parametrize("prompt", ["", [[]], [0x3000], [-1]])
async def test_prompts_that_hold_nothing_sound(prompt: Any) -> None:
    async with http_client() as client:
        error = await error_of(await client.post("/v1/completions", json={**COMPLETION, "prompt": prompt}), 400)
    assert error["param"] == "prompt"


async def test_too_many_choices() -> None:
    async with http_client() as client:
        body = {**COMPLETION, "prompt": ["a", "b"], "n": 100}
        error = await error_of(await client.post("/v1/completions", json=body), 400)
    assert error["param"] == "n"


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b"3", b"\xff", b"[" * 100_000, b'{"n": ' + b"9" * 5000, b'{"\\ud800": 1}']
)
async def test_bodies_that_are_no_json_object(raw: bytes) -> None:
    async with http_client() as client:
        headers = {"Content-Type": "application/json"}
        error = await error_of(await client.post("/v1/chat/completions", content=raw, headers=headers), 400)
    assert error["code"] == "invalid_json"


async def test_a_form_is_no_json() -> None:
    async with http_client() as client:
        error = await error_of(await client.post("/v1/chat/completions", data={"model": "x"}), 400)
    assert "application/json" in error["message"]


async def test_unknown_model() -> None:
    async with http_client() as client:
        error = await error_of(await client.post("/v1/completions", json={**COMPLETION, "model": "gpt-4"}), 404)
        assert (error["param"], error["code"]) == ("model", "model_not_found")
        assert "gpt-4" in error["message"] and "fake-model" in error["message"]
        await error_of(await client.get("/v1/models/org/other"), 404)
        assert (await client.get("/v1/models/fake-model")).json()["id"] == "fake-model"
        assert [one["id"] for one in (await client.get("/v1/models")).json()["data"]] == ["fake-model"]


async def test_no_chat_template() -> None:
    async with http_client(codec=FakeCodec(has_chat_template=False)) as client:
        error = await error_of(await client.post("/v1/chat/completions", json=CHAT), 400)
    assert error["param"] == "messages" and "no chat template" in error["message"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("raised", "status", "retry"),
    [
        (QueueFullError("256 queries wait"), 429, "1"),
        (EngineUnavailableError("the engine is restarting"), 503, "5"),
        (PromptTooLongError("no room"), 400, None),
    ],
)
async def test_refusals_of_the_engine(stream: bool, raised: Exception, status: int, retry: str | None) -> None:
    async with http_client(FakeEngineClient(refuse=raised)) as client:
        answer = await client.post("/v1/chat/completions", json={**CHAT, "stream": stream})
    error = await error_of(answer, status)
    assert error["message"] == str(raised)
    assert answer.headers.get("retry-after") == retry


async def test_one_refused_choice_cancels_the_others() -> None:
    engine = FakeEngineClient(fail_after=(2, QueueFullError("full")))
    async with http_client(engine) as client:
        await error_of(await client.post("/v1/chat/completions", json={**CHAT, "n": 3}), 429)
    assert sorted(engine.closed) == sorted(query.request_id for query in engine.requests)


@pytest.mark.parametrize("engine", [FakeEngineClient(refuse=KeyError("secret")), FakeEngineClient(finish_as="error")])
async def test_faults_of_ours_tell_nothing(engine: FakeEngineClient, caplog: pytest.LogCaptureFixture) -> None:
    async with http_client(engine) as client:
        answer = await client.post("/v1/chat/completions", json=CHAT)
    error = await error_of(answer, 500)
    assert error["type"] == "server_error"
    assert "secret" not in answer.text and "Traceback" not in answer.text
    assert answer.headers["x-request-id"]
    assert any(record.levelno >= logging.ERROR for record in caplog.records)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_a_model_that_overflows_is_an_error_that_says_so(path: str) -> None:
    """Whole: a status of 500. Streamed: what came before, then an error event, and the end mark."""
    body = CHAT if path.endswith("chat/completions") else COMPLETION
    async with http_client(FakeEngineClient(finish_as="error", error=NOT_FINITE)) as client:
        error = await error_of(await client.post(path, json=body), 500)
        streamed = await client.post(path, json={**body, "stream": True})
    assert error["type"] == "server_error" and error["code"] == "not_finite"
    assert "not finite (NaN or infinity)" in error["message"]
    assert streamed.status_code == 200
    *pieces, last, end, _ = streamed.text.split("\n\n")
    assert pieces and end == "data: [DONE]"
    assert json.loads(last.removeprefix("data: "))["error"] == error


async def test_what_a_grammar_says_of_an_answer_is_told_to_its_client_and_not_to_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = FakeEngineClient(finish_as="error", error=f"{CONSTRAINT_FAILED}: no way on after 'swordfish'")
    async with http_client(engine) as client:
        error = await error_of(await client.post("/v1/chat/completions", json=CHAT), 500)
    assert "swordfish" in error["message"] and error["code"] == "constraint_failed"
    assert CONSTRAINT_FAILED in caplog.text and "swordfish" not in caplog.text


def test_no_message_about_a_request_quotes_it() -> None:
    """Whoever logs pydantic's own message discloses nothing."""
    with pytest.raises(ValidationError) as refused:
        ChatRequest.model_validate({"model": "m", "messages": [{"role": "user", "content": 5, "name": "swordfish"}]})
    assert "swordfish" not in str(refused.value)
    with pytest.raises(ValidationError) as refused:
        ChatRequest.model_validate({"model": "m", "messages": "swordfish"})
    assert "swordfish" not in str(refused.value) and "messages" in str(refused.value)


async def test_a_cancelled_query_can_be_tried_again() -> None:
    async with http_client(FakeEngineClient(finish_as="cancelled")) as client:
        await error_of(await client.post("/v1/chat/completions", json=CHAT), 503)


async def test_a_query_that_takes_too_long() -> None:
    engine = FakeEngineClient(pause_after=1)
    async with http_client(engine, server={"request_timeout_s": 0.5}) as client:
        error = await error_of(await client.post("/v1/chat/completions", json=CHAT), 504)
    assert error["code"] == "timeout"
    assert engine.closed == [engine.requests[0].request_id]


async def test_unknown_paths_and_methods() -> None:
    async with http_client() as client:
        assert (await error_of(await client.get("/v1/nothing"), 404))["code"] == "unknown_url"
        answer = await client.get("/v1/completions")
        assert (await error_of(answer, 405))["code"] == "method_not_supported"
        assert answer.headers["allow"] == "POST"
