"""/openapi.json against the app: every documented response is brought about once, and held against its schema.

Objects may hold nothing beyond what the schema lists: an answer's undocumented field fails, too.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from hashlib import sha256
from math import inf
from typing import Any, NoReturn

import httpx
import pytest
from jsonschema import Draft202012Validator

from osd.config.settings import load_config
from osd.monitor.alerts import Alert
from osd.monitor.buckets import HistoryQuery
from osd.records.errors import EngineUnavailableError, QueueFullError
from osd.records.events import Event
from osd.text.chat_template import ChatFeatures
from serving.app import create_app
from tests.kit.fakes import FakeCodec, FakeEngineClient, fake_buckets, fake_manifest, fake_report, fake_service
from tests.kit.http_client import CHAT, COMPLETION, http_client

KEY, TOKEN = "a-key", "a-long-admin-token"
CSRF = {"X-OSD-Admin": "1"}
CHATS, COMPLETIONS, MODELS, MODEL = "/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/models/{model_id}"
MESSAGES, COUNT, RESPONSES = "/v1/messages", "/v1/messages/count_tokens", "/v1/responses"
RESPONSE = "/v1/responses/{response_id}"
TOKENIZE, DETOKENIZE = "/tokenize", "/detokenize"
TOOL = {"type": "function", "function": {"name": "add"}}
OF_RESPONSES = [("GET", RESPONSE), ("DELETE", RESPONSE)]
CALLING: dict[str, Any] = {
    "engine": FakeEngineClient(answer='<think>x</think>y<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'),
    "codec": FakeCodec(features=ChatFeatures(tools=True, calls=True, call_format="hermes", reasoning=True)),
}
ADMIN = "/admin/api"
DATA = ("status", "events", "history", "versions", "engines", "alerts", "wishes")
LEVERS: dict[str, dict[str, Any]] = {
    f"{ADMIN}/alerts/acknowledge": {"name": "drift", "subject": "code"},
    f"{ADMIN}/alerts/silence": {"name": "drift", "for_s": 60},
    f"{ADMIN}/policy": {"domain": "code", "length": 0},
    f"{ADMIN}/freeze": {"domain": "code"},
    f"{ADMIN}/drain": {"engine": "engine"},
    f"{ADMIN}/train_now": {},
    f"{ADMIN}/publish": {},
    f"{ADMIN}/pin": {"to": 1, "reason": "a demonstration"},
    f"{ADMIN}/unpin": {},
}
POSTS: dict[str, dict[str, Any]] = {
    CHATS: CHAT,
    COMPLETIONS: COMPLETION,
    MESSAGES: {**CHAT, "max_tokens": 100},
    COUNT: CHAT,
    RESPONSES: {"model": "fake-model", "input": "hi"},
    TOKENIZE: {"prompt": "hi"},
    DETOKENIZE: {"tokens": [104]},
    f"{ADMIN}/login": {"token": TOKEN},
    f"{ADMIN}/logout": {},
    f"{ADMIN}/pause": {},
    f"{ADMIN}/resume": {},
    f"{ADMIN}/roll_back": {"to": 1, "reason": "was better"},
    **LEVERS,
}


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


class Failing(FakeEngineClient):
    """Every call an admin makes fails alike."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self._error = error

    async def status(self) -> NoReturn:
        raise self._error

    async def events(self, limit: int, from_s: float = 0.0, to_s: float = inf) -> NoReturn:
        raise self._error

    async def history(self, query: HistoryQuery) -> NoReturn:
        raise self._error

    async def engines(self) -> NoReturn:
        raise self._error

    async def alerts(self) -> NoReturn:
        raise self._error

    async def wishes(self) -> NoReturn:
        raise self._error

    async def set_length(self, domain: str, length: int | None) -> NoReturn:
        raise self._error

    async def set_frozen(self, domain: str, frozen: bool) -> NoReturn:
        raise self._error

    async def set_draining(self, engine_id: str, draining: bool) -> NoReturn:
        raise self._error

    async def train_now(self) -> NoReturn:
        raise self._error

    async def publish_candidate(self) -> NoReturn:
        raise self._error

    async def acknowledge(self, name: str, subject: str, who: str) -> NoReturn:
        raise self._error

    async def silence(self, name: str, for_s: float, who: str) -> NoReturn:
        raise self._error

    async def versions(self) -> NoReturn:
        raise self._error

    async def pause_training(self) -> NoReturn:
        raise self._error

    async def resume_training(self) -> NoReturn:
        raise self._error

    async def pin(self, version: int, reason: str) -> NoReturn:
        raise self._error

    async def unpin(self) -> NoReturn:
        raise self._error

    async def roll_back(self, to: int, reason: str) -> NoReturn:
        raise self._error


@dataclass(frozen=True, kw_only=True)
class Case:
    status: int
    path: str
    method: str = "POST"
    body: Any = None
    url: str = ""
    headers: dict[str, str] | None = None
    """None: the right key or token."""
    engine: FakeEngineClient = field(default_factory=FakeEngineClient)
    codec: FakeCodec | None = None
    server: dict[str, Any] = field(default_factory=dict)
    times: int = 1
    """Only the last answer counts."""
    stalls: bool = False

    def __str__(self) -> str:
        return f"{self.status} {self.method} {self.path}"


def healthy() -> FakeEngineClient:
    return FakeEngineClient(
        service=fake_service(),
        buckets=fake_buckets(),
        reports=[fake_report()],
        held_alerts=[Alert(name="drift", subject="code", severity="info", state="firing", since_s=1.0, why="fell")],
        event_log=[Event(at_s=1.0, kind="swap", message="1 -> 2", data={"took_ms": 3.0})],
        manifests=[fake_manifest(1), fake_manifest(2), fake_manifest(3, rolled_back="worse")],
    )


def cases() -> list[Case]:
    generation: list[tuple[str, dict[str, Any]]] = [(CHATS, {**CHAT}), (COMPLETIONS, {**COMPLETION})]
    blocks: list[tuple[str, dict[str, Any]]] = [(path, POSTS[path]) for path in (MESSAGES, RESPONSES)]
    tools: dict[str, dict[str, Any]] = {
        MESSAGES: {"tools": [{"name": "add", "input_schema": {}}]},
        RESPONSES: {"tools": [{"type": "function", "name": "add"}]},
    }
    logprobs: dict[str, dict[str, Any]] = {CHATS: {"logprobs": True, "top_logprobs": 2}, COMPLETIONS: {"logprobs": 2}}
    options = {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    found = [
        Case(status=200, method="GET", path="/health"),
        Case(status=200, method="GET", path="/ready", engine=healthy()),
        Case(status=503, method="GET", path="/ready"),
        Case(status=200, method="GET", path="/metrics", engine=healthy()),
        Case(status=401, method="GET", path="/metrics", server={"metrics_access": "admin"}, headers={}),
        Case(status=404, method="GET", path="/metrics", server={"metrics_access": "off"}),
        Case(status=200, method="GET", path="/version"),
        Case(status=200, path=TOKENIZE),
        Case(status=200, path=TOKENIZE, body={"messages": CHAT["messages"], "return_token_strs": True}),
        Case(status=400, path=TOKENIZE, body={}),
        Case(status=404, path=TOKENIZE, body={"model": "other", "prompt": "hi"}),
        Case(status=200, path=CHATS, body={**CHAT, "tools": [TOOL]}, **CALLING),
        Case(status=200, path=CHATS, body={**CHAT, "tools": [TOOL], "stream": True}, **CALLING),
        Case(status=200, path=DETOKENIZE),
        Case(status=400, path=DETOKENIZE, body={"tokens": [-1]}),
        Case(status=404, path=DETOKENIZE, body={"model": "other", "tokens": []}),
        Case(status=200, method="GET", path=MODELS),
        Case(status=200, method="GET", path=MODEL, url="/v1/models/fake-model"),
        Case(status=404, method="GET", path=MODEL, url="/v1/models/other"),
        Case(status=400, method="GET", path=f"{ADMIN}/events", url=f"{ADMIN}/events?limit=0"),
        Case(status=400, method="GET", path=f"{ADMIN}/history", url=f"{ADMIN}/history?from=x"),
        Case(status=204, path=f"{ADMIN}/login", headers=CSRF),
        Case(status=400, path=f"{ADMIN}/login", headers=CSRF, body={"tokn": "x"}),
        Case(status=401, path=f"{ADMIN}/login", headers=CSRF, body={"token": "guess"}),
        Case(status=403, path=f"{ADMIN}/login", headers={}),
        Case(status=429, path=f"{ADMIN}/login", headers=CSRF, body={"token": "guess"}, times=11),
        Case(status=200, method="GET", path=f"{ADMIN}/events", url=f"{ADMIN}/events?format=csv", engine=healthy()),
        Case(status=400, path=f"{ADMIN}/alerts/acknowledge", body={"name": 1}),
        Case(status=400, path=f"{ADMIN}/policy", body={"domain": "code", "length": 99}),
        Case(status=400, path=f"{ADMIN}/freeze", body={"domain": ""}),
        Case(status=400, path=f"{ADMIN}/drain", body={"engine": "a", "draining": "yes"}),
        Case(status=400, method="GET", path=f"{ADMIN}/history", url=f"{ADMIN}/history?from=5&to=4"),
        Case(status=404, path=f"{ADMIN}/alerts/acknowledge", body={"name": "gone"}),
        Case(status=400, path=f"{ADMIN}/alerts/silence", body={"name": "drift", "for_s": -1}),
        Case(status=404, path=f"{ADMIN}/alerts/silence", body={"name": "gone", "for_s": 1}),
        Case(status=400, path=f"{ADMIN}/roll_back", body={"to": "x"}),
        Case(status=400, path=f"{ADMIN}/pin", body={"to": "x"}),
        Case(status=404, path=f"{ADMIN}/pin", body={"to": 9, "reason": "x"}),
        Case(status=409, path=f"{ADMIN}/pin", body={"to": 3, "reason": "x"}, engine=healthy()),
        Case(status=404, path=f"{ADMIN}/roll_back", body={"to": 9, "reason": "x"}),
        Case(status=409, path=f"{ADMIN}/roll_back", body={"to": 3, "reason": "x"}, engine=healthy()),
    ]
    for path, body in generation:
        found += [
            Case(status=200, path=path),
            Case(status=200, path=path, body={**body, "n": 2, **logprobs[path]}),
            Case(status=200, path=path, body={**body, "max_tokens": 1}),
            Case(status=200, path=path, body={**body, "stream": True, **logprobs[path]}),
            Case(status=200, path=path, body={**body, **options, "n": 2}),
            Case(status=200, path=path, body={**body, **options}, engine=FakeEngineClient(fail_after=(2, KeyError()))),
            Case(status=400, path=path, body={**body, "temperature": "x"}),
            Case(status=404, path=path, body={**body, "model": "other"}),
            Case(status=429, path=path, engine=FakeEngineClient(refuse=QueueFullError("full"))),
            Case(status=500, path=path, engine=FakeEngineClient(refuse=KeyError("secret"))),
            Case(status=503, path=path, engine=FakeEngineClient(refuse=EngineUnavailableError("gone"))),
            Case(status=504, path=path, engine=FakeEngineClient(pause_after=0), server={"request_timeout_s": 0.01}),
        ]
    for path, body in blocks:
        broken = FakeEngineClient(fail_after=(2, KeyError()))
        found += [
            Case(status=200, path=path),
            Case(status=200, path=path, body={**body, **tools[path]}, **CALLING),
            Case(status=200, path=path, body={**body, **tools[path], "stream": True}, **CALLING),
            Case(status=200, path=path, body={**body, "stream": True}, engine=broken),
            Case(status=400, path=path, body={**body, "temperature": "x"}),
            Case(status=404, path=path, body={**body, "model": "other"}),
            Case(status=429, path=path, engine=FakeEngineClient(refuse=QueueFullError("full"))),
            Case(status=500, path=path, engine=FakeEngineClient(refuse=KeyError("secret"))),
            Case(status=503, path=path, engine=FakeEngineClient(refuse=EngineUnavailableError("gone"))),
            Case(status=504, path=path, engine=FakeEngineClient(pause_after=0), server={"request_timeout_s": 0.01}),
        ]
    found += [
        Case(status=200, path=COUNT),
        Case(status=400, path=COUNT, body={}),
        Case(status=404, path=COUNT, body={**CHAT, "model": "other"}),
        Case(status=200, method="GET", path=RESPONSE, url="stored"),
        Case(status=400, method="GET", path=RESPONSE, url=f"{RESPONSES}/x?stream=true"),
        Case(status=404, method="GET", path=RESPONSE, url=f"{RESPONSES}/x"),
        Case(status=200, method="DELETE", path=RESPONSE, url="stored"),
        Case(status=404, method="DELETE", path=RESPONSE, url=f"{RESPONSES}/x"),
        Case(status=413, method="DELETE", path=RESPONSE, body="x" * 2000, server={"max_body_bytes": 1024}),
        Case(status=408, method="DELETE", path=RESPONSE, stalls=True, server={"receive_timeout_s": 0.01}),
    ]
    for path in POSTS:
        signed_in = CSRF if path.endswith("/login") else None
        found += [
            Case(status=413, path=path, headers=signed_in, body="x" * 2000, server={"max_body_bytes": 1024}),
            Case(status=408, path=path, headers=signed_in, stalls=True, server={"receive_timeout_s": 0.01}),
        ]
    for name in (*DATA, "pause", "resume", "roll_back", *(path.removeprefix(f"{ADMIN}/") for path in LEVERS)):
        method = "POST" if f"{ADMIN}/{name}" in POSTS else "GET"
        found += [
            Case(
                status=200 if name in (*DATA, "roll_back") else 204,
                method=method,
                path=f"{ADMIN}/{name}",
                engine=healthy(),
            ),
            Case(status=500, method=method, path=f"{ADMIN}/{name}", engine=Failing(KeyError("secret"))),
            Case(
                status=503, method=method, path=f"{ADMIN}/{name}", engine=Failing(EngineUnavailableError("restarting"))
            ),
        ]
    found.append(Case(status=204, path=f"{ADMIN}/logout"))
    for method, path in [
        ("GET", MODELS),
        ("GET", MODEL),
        *OF_RESPONSES,
        *(("POST", path) for path in POSTS),
        ("GET", "/metrics"),
    ] + [("GET", f"{ADMIN}/{name}") for name in DATA]:
        if path.endswith("/login"):
            continue
        guess = {"Authorization": "Bearer guess"}
        server = {"metrics_access": "api_key"}
        found.append(Case(status=401, method=method, path=path, headers=guess, server=server))
        found.append(Case(status=429, method=method, path=path, headers=guess, times=11, server=server))
        if path.startswith(ADMIN) and method == "POST":
            found.append(Case(status=403, method=method, path=path, headers={"cookie": "signed in"}))
    return found


async def stalling() -> AsyncIterator[bytes]:
    yield b"{"
    await asyncio.sleep(60)


async def answer_of(case: Case) -> httpx.Response:
    digests = {"api_keys_sha256": [sha256(KEY.encode()).hexdigest()]}
    admin = sha256(TOKEN.encode()).hexdigest()
    async with http_client(
        case.engine, case.codec, server={**digests, **case.server}, admin_token_sha256=admin
    ) as client:
        headers = case.headers
        if headers is None:
            headers = {"Authorization": f"Bearer {TOKEN if case.path.startswith(ADMIN) else KEY}"}
        elif headers == {"cookie": "signed in"}:
            await client.post(f"{ADMIN}/login", json={"token": TOKEN}, headers=CSRF)
            headers = {}
        content: Any = None
        url = case.url or case.path
        if url == "stored":
            made = await client.post(RESPONSES, json=POSTS[RESPONSES], headers={"Authorization": f"Bearer {KEY}"})
            url = f"{RESPONSES}/{made.json()['id']}"
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
        brought_about.add((str(case.status), case.method, case.path, media_type))
    # Of these, only a bug of ours would be the cause.
    faults = {("500", method, path) for _, method, path, _ in DOCUMENTED if path in (MODELS, MODEL, RESPONSE)}
    faults |= {("500", "DELETE", RESPONSE), ("500", "POST", COUNT)}
    faults |= {("500", "POST", path) for path in (TOKENIZE, DETOKENIZE)}
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
    def security(path: str, method: str, **server: Any) -> Any:
        return schema_of_app(**server)["paths"][path][method].get("security")

    keys = {"api_keys_sha256": ["ab"]}
    assert security(CHATS, "post") is None
    assert security(CHATS, "post", **keys) == [{"ApiKey": []}]
    assert security("/metrics", "get", **keys) is None
    assert security("/metrics", "get", metrics_access="api_key", **keys) == [{"ApiKey": []}]
    assert security("/metrics", "get", metrics_access="admin") == [{"AdminToken": []}]
    assert "/metrics" not in schema_of_app(metrics_access="off")["paths"]
