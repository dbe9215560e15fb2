from __future__ import annotations

from hashlib import sha256

import httpx
import pytest

from serving.admin.gate import SESSION_S, AdminGate
from serving.api_keys import ApiKeys
from serving.errors import ApiError
from tests.fakes import FakeEngineClient, fake_service
from tests.http_client import CHAT, http_client

TOKEN = "a-long-admin-token"


def digest(secret: str) -> str:
    return sha256(secret.encode()).hexdigest()


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def test_keys() -> None:
    keys = ApiKeys([digest("one"), digest("two").upper()])
    assert keys.allows("Bearer one") and keys.allows("bearer two")
    for wrong in (None, "", "Bearer", "Bearer ", "Bearer three", "Basic one", "one", f"Bearer {digest('one')}"):
        assert not keys.allows(wrong)
    assert ApiKeys([]).allows(None)


async def test_openai_routes_ask_for_a_key() -> None:
    async with http_client(server={"api_keys_sha256": [digest("key")]}) as client:
        for answer in (
            await client.post("/v1/chat/completions", json=CHAT),
            await client.post("/v1/chat/completions", json=CHAT, headers=bearer("wrong")),
            await client.post("/v1/chat/completions", json={}),
            await client.get("/v1/models"),
        ):
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"
            assert answer.headers["www-authenticate"] == "Bearer"
        assert (await client.post("/v1/chat/completions", json=CHAT, headers=bearer("key"))).status_code == 200
        assert (await client.get("/health")).status_code == 200


async def test_an_api_key_opens_no_admin_route() -> None:
    engine = FakeEngineClient(service=fake_service())
    server = {"api_keys_sha256": [digest("key")]}
    async with http_client(engine, server=server, admin_token_sha256=digest(TOKEN)) as client:
        assert (await client.get("/admin/api/status", headers=bearer("key"))).status_code == 401
        assert (await client.get("/admin/api/status", headers=bearer(TOKEN))).status_code == 200
        assert (await client.get("/v1/models", headers=bearer(TOKEN))).status_code == 401


async def test_without_an_admin_token_the_admin_api_is_shut() -> None:
    async with http_client(admin_token_sha256="") as client:
        for token in ("", "x", digest("")):
            answer = await client.get("/admin/api/status", headers={"Authorization": f"Bearer {token}"})
            assert answer.status_code == 401


def test_sessions_end() -> None:
    now_s = 0.0
    gate = AdminGate(digest(TOKEN), clock_s=lambda: now_s)
    session = gate.open_session()
    assert gate.has_session(session)
    assert not gate.has_session("") and not gate.has_session(session + "x")
    now_s = SESSION_S + 1.0
    assert not gate.has_session(session)


def test_wrong_tokens_are_counted_by_peer() -> None:
    now_s = 0.0
    gate = AdminGate(digest(TOKEN), clock_s=lambda: now_s)
    for _ in range(10):
        with pytest.raises(ApiError) as wrong:
            gate.check_token("guess", "10.0.0.1")
        assert wrong.value.status == 401
    with pytest.raises(ApiError) as too_many:
        gate.check_token(TOKEN, "10.0.0.1")
    assert too_many.value.status == 429 and too_many.value.headers["Retry-After"] == "60"
    gate.check_token(TOKEN, "10.0.0.2")
    now_s = 61.0
    gate.check_token(TOKEN, "10.0.0.1")


async def test_cookie_session_and_its_csrf_header() -> None:
    engine = FakeEngineClient(service=fake_service())
    header = {"X-OSD-Admin": "1"}
    async with http_client(engine, admin_token_sha256=digest(TOKEN)) as client:
        body = {"token": TOKEN}
        assert (await client.post("/admin/api/login", json=body)).status_code == 403
        answer = await client.post("/admin/api/login", json=body, headers=header)
        assert answer.status_code == 204
        cookie = answer.headers["set-cookie"]
        assert "HttpOnly" in cookie and "samesite=strict" in cookie.lower() and "Path=/admin" in cookie
        assert "Secure" not in cookie and TOKEN not in cookie
        assert (await client.get("/admin/api/status")).status_code == 200
        assert (await client.post("/admin/api/pause")).status_code == 403
        assert engine.calls == []
        assert (await client.post("/admin/api/pause", headers=header)).status_code == 204
        assert engine.calls == [("pause",)]
        kept = httpx.Cookies(client.cookies)
        assert (await client.post("/admin/api/logout", headers=header)).status_code == 204
        client.cookies = kept
        assert (await client.get("/admin/api/status")).status_code == 401


async def test_over_https_the_cookie_is_secure() -> None:
    async with http_client(admin_token_sha256=digest(TOKEN)) as client:
        url = "https://osd.test/admin/api/login"
        answer = await client.post(url, json={"token": TOKEN}, headers={"X-OSD-Admin": "1"})
    assert "Secure" in answer.headers["set-cookie"]
