"""/openapi.json against the app: every documented response is brought about once, and held against its schema.

Objects may hold nothing beyond what the schema lists: an answer's undocumented field fails, too.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Mapping
from copy import deepcopy
from hashlib import sha256
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator

from osd.config.settings import load_config
from serving.app import create_app
from tests.kit.fakes import FakeCodec, FakeEngineClient
from tests.kit.http_client import CHAT, http_client
from tests.kit.openapi_cases import (
    ADMIN,
    CANCEL,
    CHATS,
    COUNT,
    CSRF,
    DETOKENIZE,
    INPUT_ITEMS,
    INPUT_TOKENS,
    KEY,
    MESSAGES,
    MODEL,
    MODELS,
    POSTS,
    RESPONSE,
    RESPONSES,
    TOKEN,
    TOKENIZE,
    TOOL,
    Case,
    cases,
)


def schema_of_app(**server: Any) -> dict[str, Any]:
    config = load_config(flags={"server": server})
    return create_app(config, FakeEngineClient(), FakeCodec(), admin_token_sha256="").openapi()


SCHEMA = schema_of_app(api_keys_sha256=["ab"])
DOCUMENTED = {
    (status, method.upper(), path, media_type)
    for path, operations in SCHEMA["paths"].items()
    for method, operation in operations.items()
    for status, response in operation["responses"].items()
    for media_type in response.get("content", {"": None})
}


def closed(schema: Any) -> Any:
    """The same schema, with nothing allowed that it does not list."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    shut = {name: closed(value) for name, value in schema.items()}
    return {"additionalProperties": False, **shut} if isinstance(schema.get("properties"), dict) else shut


def problems(value: Any, schema: Mapping[str, Any]) -> list[str]:
    root = {**deepcopy(closed(schema)), "components": closed(SCHEMA["components"])}
    return [f"{error.json_path}: {error.message}" for error in Draft202012Validator(root).iter_errors(value)]


async def stalling() -> AsyncIterator[bytes]:
    yield b"{"
    await asyncio.sleep(60)


async def answer_of(case: Case) -> httpx.Response:
    digests = {"api_keys_sha256": [sha256(KEY.encode()).hexdigest()]}
    admin = sha256(TOKEN.encode()).hexdigest()
    async with http_client(
        case.engine,
        case.codec,
        server={**digests, **case.server},
        admin_token_sha256=admin,
        sessions=case.sessions,
    ) as client:
        headers = case.headers
        if headers is None:
            headers = {"Authorization": f"Bearer {TOKEN if case.path.startswith(ADMIN) else KEY}"}
        elif headers == {"cookie": "signed in"}:
            await client.post(f"{ADMIN}/login", json={"token": TOKEN}, headers=CSRF)
            headers = {}
        content: Any = None
        url = case.url or case.path
        if (kind := re.match("stored|background", url)) is not None:
            asked = {**POSTS[RESPONSES], "background": kind[0] == "background"}
            made = await client.post(RESPONSES, json=asked, headers={"Authorization": f"Bearer {KEY}"})
            url = f"{RESPONSES}/{made.json()['id']}{url.removeprefix(kind[0])}"
        if case.method == "POST" or case.body is not None or case.stalls:
            body = POSTS.get(case.path) if case.body is None else case.body
            content = stalling() if case.stalls else json.dumps(body)
            headers = {"Content-Type": "application/json", **headers}
        for _ in range(case.times):
            answer = await client.request(case.method, url, content=content, headers=headers)
        return answer


def bodies(answer: httpx.Response) -> list[Any]:
    """The JSON documents of an answer; each event of a stream is one."""
    media_type = answer.headers.get("content-type", "").partition(";")[0]
    if media_type == "text/event-stream":
        *events, _ = answer.text.split("\n\n")
        if "chat/completions" in answer.request.url.path or "/v1/completions" in answer.request.url.path:
            assert events.pop() == "data: [DONE]"
        return [json.loads(event.rpartition("data: ")[2]) for event in events]
    return [answer.json()] if media_type == "application/json" else [answer.text]


@pytest.fixture(autouse=True)
def no_waiting_for_guesses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.guards.wrong_secrets.DELAY_S", 0.0)


@pytest.mark.parametrize("case", cases(), ids=str)
async def test_answers_are_as_documented(case: Case) -> None:
    answer = await answer_of(case)
    assert answer.status_code == case.status, answer.text
    operation = SCHEMA["paths"][case.path][case.method.lower()]
    response = operation["responses"][str(case.status)]
    for name, header in response.get("headers", {}).items():
        assert not header["required"] or name in answer.headers
    if not response.get("content"):
        assert answer.content == b""
        return
    media_type = answer.headers["content-type"].partition(";")[0]
    schema = response["content"][media_type]["schema"]
    for body in bodies(answer):
        is_error = media_type == "text/event-stream" and "error" in body and case.path != RESPONSES
        error = {"$ref": f"#/components/schemas/{'AnthropicError' if case.path == MESSAGES else 'ErrorAnswer'}"}
        assert problems(body, error if is_error else schema) == []


def test_every_documented_response_is_brought_about() -> None:
    brought_about = set()
    for case in cases():
        is_stream = isinstance(case.body, dict) and case.body.get("stream") and case.status == 200
        content = SCHEMA["paths"][case.path][case.method.lower()]["responses"][str(case.status)].get("content", {"": 0})
        media_type = "text/event-stream" if is_stream else next(iter(content))
        if case.url.endswith("format=csv"):
            media_type = "text/csv"
        elif case.url.endswith("stream=true") and case.status == 200:
            media_type = "text/event-stream"
        brought_about.add((str(case.status), case.method, case.path, media_type))
    # Of these, only a bug of ours would be the cause.
    faults = {
        ("500", method, path) for _, method, path, _ in DOCUMENTED if path in (MODELS, MODEL, RESPONSE, INPUT_ITEMS)
    }
    faults |= {("500", "DELETE", RESPONSE), ("500", "POST", COUNT)}
    faults |= {("500", "POST", path) for path in (TOKENIZE, DETOKENIZE, INPUT_TOKENS, CANCEL)}
    faults |= {("500", "POST", f"{ADMIN}/{name}") for name in ("login", "logout")}
    missing = {one for one in DOCUMENTED if one[:3] not in faults} - brought_about
    assert missing == set()


def test_requests_are_documented_as_they_are_taken() -> None:
    request = SCHEMA["paths"][CHATS]["post"]["requestBody"]["content"]["application/json"]["schema"]
    taken: list[dict[str, Any]] = [{}, {"tools": []}, {"tools": [TOOL]}, {"top_k": -1}, {"stop": "x"}, {"stop": ["x"]}]
    for fields in taken:
        assert problems({**CHAT, **fields}, request) == [], fields
    refused: list[dict[str, Any]] = [{"tools": [{}]}, {"top_k": -2}, {"n": 0}, {"mystery": 1}, {"temperature": 3}]
    for fields in refused:
        assert problems({**CHAT, **fields}, request), fields


def test_nothing_is_said_of_422_and_sign_in_is_explained() -> None:
    assert "422" not in json.dumps(SCHEMA) and "HTTPValidationError" not in json.dumps(SCHEMA)
    assert set(SCHEMA["components"]["securitySchemes"]) == {"ApiKey", "AdminToken", "AdminSession"}
    for path, operations in SCHEMA["paths"].items():
        for operation in operations.values():
            schemes = {name for one in operation.get("security", []) for name in one}
            if path.startswith("/v1/") or path in (TOKENIZE, DETOKENIZE):
                assert schemes == {"ApiKey"}
            elif path.startswith(ADMIN) and not path.endswith("/login"):
                assert schemes == {"AdminToken", "AdminSession"}
            assert schemes <= set(SCHEMA["components"]["securitySchemes"])


def test_who_may_ask_is_documented_as_configured() -> None:
    def security(schema: Mapping[str, Any], path: str) -> Any:
        [operation] = schema["paths"][path].values()
        return operation.get("security")

    assert security(SCHEMA, CHATS) == [{"ApiKey": []}]
    assert security(SCHEMA, "/metrics") is None
    of_admin = schema_of_app(metrics_access="admin")
    assert security(of_admin, CHATS) is None
    assert security(of_admin, "/metrics") == [{"AdminToken": []}]
    with_keys = schema_of_app(metrics_access="api_key", api_keys_sha256=["ab"])
    assert security(with_keys, "/metrics") == [{"ApiKey": []}]
    assert "/metrics" not in schema_of_app(metrics_access="off")["paths"]
