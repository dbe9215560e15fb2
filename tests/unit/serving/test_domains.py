"""Which domain a request belongs to, and an operator's levers by domain."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import pytest

from osd.config.settings import ConfigError, load_config
from serving.answering.queries import check_model, query_domain
from serving.guards.api_keys import ApiKeys
from serving.wire.errors import ApiError
from tests.kit.fake_status import fake_manifest, fake_service
from tests.kit.fakes import FakeEngineClient
from tests.kit.http_client import CHAT, COMPLETION, http_client

_KEYS = {name: sha256(name.encode()).hexdigest() for name in ("plain", "of-sql")}
_SERVER = {"api_keys_sha256": list(_KEYS.values()), "api_key_domains": {_KEYS["of-sql"]: "sql"}}
_MESSAGE = {"model": "fake-model", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}
_RESPONSE = {"model": "fake-model", "input": "hi"}
_PATHS = [
    ("/v1/chat/completions", CHAT),
    ("/v1/completions", COMPLETION),
    ("/v1/messages", _MESSAGE),
    ("/v1/responses", _RESPONSE),
]


@pytest.mark.parametrize(("path", "body"), _PATHS)
async def test_a_request_names_its_domain_or_its_model_or_its_key_does(path: str, body: dict[str, Any]) -> None:
    engine = FakeEngineClient()
    async with http_client(engine, server=_SERVER) as client:
        for key, model, osd in (
            ("plain", "fake-model", {}),
            ("of-sql", "fake-model", {}),
            ("of-sql", "fake-model:code", {}),
            ("of-sql", "fake-model:code", {"domain": "mail"}),
            ("plain", "fake-model:a:b", {"domain": None}),
        ):
            sent = {**body, "model": model, "osd": osd}
            answer = await client.post(path, json=sent, headers={"Authorization": f"Bearer {key}"})
            assert answer.status_code == 200, answer.text
            assert answer.json()["model"] == model
    assert [request.domain for request in engine.requests] == ["default", "sql", "code", "mail", "a:b"]
    assert [request.domain_from for request in engine.requests] == ["none", *["named"] * 4]


async def test_a_name_that_ends_in_no_domain_is_another_model() -> None:
    async with http_client() as client:
        for model in ("fake-model:", "fake-model: x", "fake-model:" + "x" * 65, "other:sql", "fake-modelsql"):
            answer = await client.post("/v1/chat/completions", json={**CHAT, "model": model})
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found"), model
        for domain in ("a b", "", "x" * 65):
            answer = await client.post("/v1/chat/completions", json={**CHAT, "osd": {"domain": domain}})
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, "osd.domain")


def test_a_served_name_may_hold_a_colon_itself() -> None:
    names = ["llama", "llama:8b"]
    assert check_model("llama:8b", names) is None
    assert check_model("llama:8b:sql", names) == "sql"
    assert check_model("llama:70b", names) == "70b"
    assert check_model(None, names) is None
    with pytest.raises(ApiError):
        check_model("8b", names)


def test_what_comes_first() -> None:
    assert query_domain("a", "b", "c") == "a"
    assert query_domain(None, "b", "c") == "b"
    assert query_domain(None, None, "c") == "c"
    assert query_domain(None, None, None) is None


def test_keys_with_domains_are_keys() -> None:
    keys = ApiKeys(_KEYS.values(), domains=_SERVER["api_key_domains"])  # type: ignore[arg-type]
    assert (keys.domain("of-sql"), keys.domain("plain"), keys.domain(None)) == ("sql", None, None)
    with pytest.raises(ConfigError, match="api_key_domains: the key 'x' is not in api_keys_sha256"):
        load_config(flags={"server": {"api_key_domains": {"x": "sql"}}})
    with pytest.raises(ConfigError, match="api_key_domains"):
        load_config(flags={"server": {**_SERVER, "api_key_domains": {_KEYS["plain"]: "not a label"}}})


async def test_levers_take_a_domain() -> None:
    engine = FakeEngineClient(service=fake_service(), manifests=[fake_manifest(1)])
    headers = {"Authorization": "Bearer token"}
    token = sha256(b"token").hexdigest()
    async with http_client(engine, admin_token_sha256=token) as client:
        client.headers.update(headers)
        body = {"to": 1, "reason": "was better", "domain": "sql"}
        assert (await client.post("/admin/api/roll_back", json=body)).status_code == 200
        assert (await client.post("/admin/api/pin", json={**body, "to": 0})).status_code == 204
        assert (await client.post("/admin/api/unpin", json={"domain": "sql"})).status_code == 204
        assert (await client.post("/admin/api/unpin")).status_code == 204
        assert (await client.get("/admin/api/versions", params={"domain": "sql"})).status_code == 200
        long = await client.post("/admin/api/pin", json={**body, "domain": "x" * 65})
        assert (long.status_code, long.json()["error"]["param"]) == (400, "domain")
        status = (await client.get("/admin/api/status")).json()
    assert engine.calls == [
        ("roll_back", 1, "was better", "sql"),
        ("pin", 0, "was better", "sql"),
        ("unpin", "sql"),
        ("unpin",),
        ("versions", "sql"),
    ]
    assert status["domains"]["sql"]["confirmed"] == 1 and status["trainer"]["domains"]["sql"]["published_version"] == 1
