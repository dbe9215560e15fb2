from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from hashlib import sha256

import httpx
import pytest

from actors.supervisor.admin_sessions import SESSION_S, AdminSessions
from osd.config.settings import ConfigError, load_config
from serving.admin.sign_in import AdminSignIn, OwnSessions
from serving.guards.api_keys import ApiKeys, api_key
from serving.guards.wrong_secrets import WrongSecrets
from serving.wire.errors import ApiError
from tests.kit.fake_status import fake_service
from tests.kit.fakes import FakeEngineClient
from tests.kit.http_client import CHAT, http_client
from tests.kit.sessions import AwaySessions

TOKEN = "a-long-admin-token"


def digest(secret: str) -> str:
    return sha256(secret.encode()).hexdigest()


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def test_keys() -> None:
    keys = ApiKeys([digest("one"), digest("two").upper()])
    assert keys.allows("one") and keys.allows("two")
    for wrong in (None, "", "three", digest("one")):
        assert not keys.allows(wrong)
    assert ApiKeys([]).allows(None)


def test_where_a_key_is_found() -> None:
    for header in ("Bearer one", "bearer one", "Bearer  one "):
        assert api_key({"authorization": header}) == "one"
    assert api_key({"x-api-key": "one"}) == "one"
    assert api_key({"authorization": "Bearer one", "x-api-key": "two"}) == "one"
    for other in ("", "Bearer", "Bearer ", "Basic one", "one"):
        assert api_key({"authorization": other}) is None
    assert api_key({}) is None and api_key({"x-api-key": ""}) is None


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


async def test_sessions_end() -> None:
    now_s = 0.0
    sign_in = AdminSignIn(digest(TOKEN), OwnSessions(AdminSessions(lambda: now_s)))
    session = await sign_in.open_session()
    assert await sign_in.has_session(session)
    assert not await sign_in.has_session("") and not await sign_in.has_session(session + "x")
    now_s = SESSION_S + 1.0
    assert not await sign_in.has_session(session)


async def test_replicas_that_share_sessions_know_each_others() -> None:
    shared = OwnSessions()
    one, other, alone = (AdminSignIn(digest(TOKEN), sessions) for sessions in (shared, shared, None))
    session = await one.open_session()
    assert await other.has_session(session) and not await alone.has_session(session)
    await other.close_session(session)
    assert not await one.has_session(session)


async def test_sessions_that_nobody_can_look_up_are_no_sign_out() -> None:
    async with http_client(sessions=AwaySessions(), admin_token_sha256=digest(TOKEN)) as client:
        cookies = {"Cookie": "osd_admin=a-secret"}
        answer = await client.get("/admin/api/versions", headers=cookies)
        assert answer.status_code == 503 and answer.json()["error"]["code"] == "engine_unavailable"
        assert 'data-signed-in="no"' in (await client.get("/admin", headers=cookies)).text
        assert (await client.get("/admin/api/versions", headers=bearer(TOKEN))).status_code == 200


class Waiting:
    """A clock and a sleep that take no time."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.slept_s: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept_s.append(seconds)


def guarded(waiting: Waiting) -> dict[str, Callable[[str, str], Awaitable[None]]]:
    """Both kinds of secret, with the same right one: check(secret, peer)."""
    sign_in = AdminSignIn(digest(TOKEN), wrong=WrongSecrets(lambda: waiting.now_s, waiting.sleep))
    keys = ApiKeys([digest(TOKEN)], wrong=WrongSecrets(lambda: waiting.now_s, waiting.sleep))
    return {"admin": sign_in.check_token, "api_key": lambda secret, peer: keys.check(secret, peer)}


@pytest.mark.parametrize("kind", ["admin", "api_key"])
async def test_wrong_secrets_are_slowed_by_peer_and_the_right_one_never(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    waiting = Waiting()
    check = guarded(waiting)[kind]

    async def status(secret: str, peer: str = "10.0.0.1") -> tuple[int, str | None]:
        try:
            await check(secret, peer)
        except ApiError as error:
            return error.status, error.headers.get("Retry-After")
        return 200, None

    assert [(await status("guess"))[0] for _ in range(10)] == [401] * 10
    assert waiting.slept_s == []
    assert caplog.messages == ["10 wrong keys or tokens within a minute from 10.0.0.1"]
    waiting.now_s = 5.0
    assert await status("guess") == (429, "55")
    assert waiting.slept_s == [1.0]
    assert await status(TOKEN) == (200, None)
    assert (await status("guess"))[0] == 429
    assert (await status("guess", "10.0.0.2"))[0] == 401
    assert len(waiting.slept_s) == 2
    waiting.now_s = 61.0
    assert (await status("guess"))[0] == 401


async def test_a_missing_key_is_no_guess() -> None:
    waiting = Waiting()
    keys = ApiKeys([digest("key")], wrong=WrongSecrets(lambda: 0.0, waiting.sleep))
    for _ in range(30):
        with pytest.raises(ApiError) as missing:
            await keys.check(None, "10.0.0.1")
        assert missing.value.status == 401


async def test_a_flood_of_guesses_does_not_pile_up() -> None:
    asleep, wake = 0, asyncio.Event()

    async def sleep(_: float) -> None:
        nonlocal asleep
        asleep += 1
        await wake.wait()

    wrong = WrongSecrets(lambda: 0.0, sleep)
    guesses = [asyncio.create_task(wrong.refusal("peer", ApiError(401, "wrong", code="wrong"))) for _ in range(200)]
    done, _ = await asyncio.wait(guesses, timeout=0.01)
    assert (asleep, len(done)) == (64, 200 - 64)
    wake.set()
    assert {error.status for error in await asyncio.gather(*guesses)} == {401, 429}


async def test_guesses_over_http(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.guards.wrong_secrets.DELAY_S", 0.0)
    server = {"api_keys_sha256": [digest("key")]}
    async with http_client(server=server, admin_token_sha256=digest(TOKEN)) as client:
        for path, right in (("/v1/models", "key"), ("/admin/api/versions", TOKEN)):
            statuses = [(await client.get(path, headers=bearer("guess"))).status_code for _ in range(10)]
            assert statuses == [401] * 10
            answer = await client.get(path, headers=bearer("guess"))
            assert answer.status_code == 429 and 0 < int(answer.headers["retry-after"]) <= 60
            assert answer.json()["error"]["code"] == "too_many_attempts"
            assert (await client.get(path, headers=bearer(right))).status_code == 200


async def test_guesses_in_the_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.guards.wrong_secrets.DELAY_S", 0.0)
    async with http_client(admin_token_sha256=digest(TOKEN)) as client:

        async def status(token: str) -> int:
            answer = await client.post("/admin/api/login", json={"token": token}, headers={"X-OSD-Admin": "1"})
            return answer.status_code

        assert [await status("guess") for _ in range(11)] == [401] * 10 + [429]
        assert await status(TOKEN) == 204


PAGES = {"metrics_access": "/metrics", "openapi_access": "/openapi.json"}


@pytest.mark.parametrize("setting", PAGES)
@pytest.mark.parametrize(
    ("access", "statuses"),
    [
        ("open", {"": 200, "key": 200, TOKEN: 200}),
        ("api_key", {"": 401, "key": 200, TOKEN: 401}),
        ("admin", {"": 401, "key": 401, TOKEN: 200}),
        ("off", {"": 404, "key": 404, TOKEN: 404}),
    ],
)
async def test_pages_that_can_be_closed(setting: str, access: str, statuses: dict[str, int]) -> None:
    server = {"api_keys_sha256": [digest("key")], setting: access}
    async with http_client(server=server, admin_token_sha256=digest(TOKEN)) as client:
        for secret, status in statuses.items():
            answer = await client.get(PAGES[setting], headers=bearer(secret) if secret else {})
            assert answer.status_code == status, secret
        (other,) = set(PAGES.values()) - {PAGES[setting]}
        assert (await client.get(other)).status_code == 200


def test_a_page_that_needs_a_key_needs_keys() -> None:
    with pytest.raises(ConfigError, match="metrics_access = 'api_key' needs keys in api_keys_sha256"):
        load_config(flags={"server": {"metrics_access": "api_key"}})


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
