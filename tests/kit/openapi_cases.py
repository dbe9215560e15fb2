"""The cases that bring about every documented response of the API once."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import Any, NoReturn

from osd.monitor.alerts import Alert
from osd.monitor.buckets import HistoryQuery
from osd.records.errors import EngineUnavailableError, QueueFullError
from osd.records.events import Event
from osd.text.chat_template import ChatFeatures
from serving.admin.sign_in import Sessions
from tests.kit.fake_status import fake_buckets, fake_manifest, fake_report, fake_service
from tests.kit.fakes import FakeCodec, FakeEngineClient
from tests.kit.http_client import CHAT, COMPLETION
from tests.kit.sessions import AwaySessions

KEY, TOKEN = "a-key", "a-long-admin-token"
CSRF = {"X-OSD-Admin": "1"}
CHATS, COMPLETIONS, MODELS, MODEL = "/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/models/{model_id}"
MESSAGES, COUNT, RESPONSES = "/v1/messages", "/v1/messages/count_tokens", "/v1/responses"
RESPONSE, INPUT_TOKENS = "/v1/responses/{response_id}", "/v1/responses/input_tokens"
INPUT_ITEMS, CANCEL = f"{RESPONSE}/input_items", f"{RESPONSE}/cancel"
TOKENIZE, DETOKENIZE = "/tokenize", "/detokenize"
TOOL = {"type": "function", "function": {"name": "add"}}
OF_RESPONSES = [("GET", RESPONSE), ("DELETE", RESPONSE), ("GET", INPUT_ITEMS)]
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
    INPUT_TOKENS: {"model": "fake-model", "input": "hi"},
    CANCEL: {},
    TOKENIZE: {"prompt": "hi"},
    DETOKENIZE: {"tokens": [104]},
    f"{ADMIN}/login": {"token": TOKEN},
    f"{ADMIN}/logout": {},
    f"{ADMIN}/pause": {},
    f"{ADMIN}/resume": {},
    f"{ADMIN}/roll_back": {"to": 1, "reason": "was better"},
    **LEVERS,
}


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

    async def versions(self, domain: str = "") -> NoReturn:
        raise self._error

    async def pause_training(self) -> NoReturn:
        raise self._error

    async def resume_training(self) -> NoReturn:
        raise self._error

    async def pin(self, version: int, reason: str, domain: str = "") -> NoReturn:
        raise self._error

    async def unpin(self, domain: str = "") -> NoReturn:
        raise self._error

    async def roll_back(self, to: int, reason: str, domain: str = "") -> NoReturn:
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
    sessions: Sessions | None = None
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
    return [*_of_single_routes(), *_of_completions(), *_of_messages(), *_of_responses(), *_of_admin(), *_of_guards()]


def _of_single_routes() -> list[Case]:
    return [
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
        Case(status=400, path=f"{ADMIN}/unpin", body={"domain": 1}),
        Case(status=404, path=f"{ADMIN}/unpin", body={"domain": "unknown"}),
        Case(status=409, path=f"{ADMIN}/pin", body={"to": 3, "reason": "x"}, engine=healthy()),
        Case(status=404, path=f"{ADMIN}/roll_back", body={"to": 9, "reason": "x"}),
        Case(status=409, path=f"{ADMIN}/roll_back", body={"to": 3, "reason": "x"}, engine=healthy()),
    ]


def _of_completions() -> list[Case]:
    logprobs: dict[str, dict[str, Any]] = {CHATS: {"logprobs": True, "top_logprobs": 2}, COMPLETIONS: {"logprobs": 2}}
    options = {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    generation: list[tuple[str, dict[str, Any]]] = [(CHATS, {**CHAT}), (COMPLETIONS, {**COMPLETION})]
    found: list[Case] = []
    for path, body in generation:
        found += [
            Case(status=200, path=path),
            Case(status=200, path=path, body={**body, "n": 2, **logprobs[path]}),
            Case(status=200, path=path, body={**body, "max_tokens": 1}),
            Case(status=200, path=path, body={**body, "use_beam_search": True, "n": 2, **logprobs[path]}),
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
    return found


def _broken() -> FakeEngineClient:
    """Fails in the middle of its answers."""
    return FakeEngineClient(fail_after=(2, KeyError()))


def _of_messages() -> list[Case]:
    """What `/v1/messages` and `/v1/responses` have in common."""
    tools: dict[str, dict[str, Any]] = {
        MESSAGES: {"tools": [{"name": "add", "input_schema": {}}]},
        RESPONSES: {"tools": [{"type": "function", "name": "add"}]},
    }
    found: list[Case] = []
    for path, body in ((path, POSTS[path]) for path in (MESSAGES, RESPONSES)):
        found += [
            Case(status=200, path=path),
            Case(status=200, path=path, body={**body, **tools[path]}, **CALLING),
            Case(status=200, path=path, body={**body, **tools[path], "stream": True}, **CALLING),
            Case(status=200, path=path, body={**body, "stream": True}, engine=_broken()),
            Case(status=400, path=path, body={**body, "temperature": "x"}),
            Case(status=404, path=path, body={**body, "model": "other"}),
            Case(status=429, path=path, engine=FakeEngineClient(refuse=QueueFullError("full"))),
            Case(status=500, path=path, engine=FakeEngineClient(refuse=KeyError("secret"))),
            Case(status=503, path=path, engine=FakeEngineClient(refuse=EngineUnavailableError("gone"))),
            Case(status=504, path=path, engine=FakeEngineClient(pause_after=0), server={"request_timeout_s": 0.01}),
        ]
    return found


def _of_responses() -> list[Case]:
    asked = {"include": ["message.output_text.logprobs"], "top_logprobs": 2, "reasoning": {"effort": "low"}}
    background = {**POSTS[RESPONSES], "background": True}
    return [
        *(Case(status=200, path=RESPONSES, body={**POSTS[RESPONSES], **asked, "stream": one}) for one in (False, True)),
        Case(status=200, path=COUNT),
        Case(status=400, path=COUNT, body={}),
        Case(status=404, path=COUNT, body={**CHAT, "model": "other"}),
        Case(status=200, method="GET", path=RESPONSE, url="stored"),
        Case(status=400, method="GET", path=RESPONSE, url="stored?stream=true"),
        Case(status=404, method="GET", path=RESPONSE, url=f"{RESPONSES}/x"),
        Case(status=200, method="GET", path=RESPONSE, url="background?stream=true"),
        Case(status=200, path=RESPONSES, body=background),
        Case(status=200, path=RESPONSES, body={**background, "stream": True}),
        Case(status=200, path=RESPONSES, body={**background, "stream": True}, engine=_broken()),
        Case(status=200, path=INPUT_TOKENS),
        Case(status=400, path=INPUT_TOKENS, body={"input": []}),
        Case(status=404, path=INPUT_TOKENS, body={"model": "other", "input": "hi"}),
        Case(status=200, path=CANCEL, url="background/cancel"),
        Case(status=400, path=CANCEL, url="stored/cancel"),
        Case(status=404, path=CANCEL, url=f"{RESPONSES}/x/cancel"),
        Case(status=200, method="GET", path=INPUT_ITEMS, url="stored/input_items"),
        Case(status=400, method="GET", path=INPUT_ITEMS, url=f"{RESPONSES}/x/input_items?limit=0"),
        Case(status=404, method="GET", path=INPUT_ITEMS, url=f"{RESPONSES}/x/input_items"),
        Case(status=200, method="DELETE", path=RESPONSE, url="stored"),
        Case(status=404, method="DELETE", path=RESPONSE, url=f"{RESPONSES}/x"),
        Case(status=413, method="DELETE", path=RESPONSE, body="x" * 2000, server={"max_body_bytes": 1024}),
        Case(status=408, method="DELETE", path=RESPONSE, stalls=True, server={"receive_timeout_s": 0.01}),
    ]


def _of_admin() -> list[Case]:
    found: list[Case] = []
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
    found.append(Case(status=503, path=f"{ADMIN}/login", headers=CSRF, sessions=AwaySessions()))
    found.append(Case(status=503, path=f"{ADMIN}/logout", sessions=AwaySessions()))
    return found


def _of_guards() -> list[Case]:
    """Bodies that are too large or too late, and whoever lacks the key or token."""
    found: list[Case] = []
    for path in POSTS:
        signed_in = CSRF if path.endswith("/login") else None
        found += [
            Case(status=413, path=path, headers=signed_in, body="x" * 2000, server={"max_body_bytes": 1024}),
            Case(status=408, path=path, headers=signed_in, stalls=True, server={"receive_timeout_s": 0.01}),
        ]
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
