from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from hashlib import sha256

import httpx
import pytest

from osd.records.events import Event
from tests.kit.fakes import FakeEngineClient, fake_manifest, fake_point, fake_service
from tests.kit.http_client import http_client

TOKEN = "a-long-admin-token"


@pytest.fixture
def engine() -> FakeEngineClient:
    return FakeEngineClient(
        service=fake_service(),
        points=[fake_point(query) for query in range(10)],
        event_log=[Event(at_s=1.0, kind="swap", message="1 -> 2", data={"took_ms": 3.0})],
        manifests=[fake_manifest(1), fake_manifest(2), fake_manifest(3, rolled_back="worse")],
    )


@pytest.fixture
async def client(engine: FakeEngineClient) -> AsyncIterator[httpx.AsyncClient]:
    async with http_client(engine, admin_token_sha256=sha256(TOKEN.encode()).hexdigest()) as client:
        client.headers["Authorization"] = f"Bearer {TOKEN}"
        yield client


async def test_status(client: httpx.AsyncClient) -> None:
    status = (await client.get("/admin/api/status")).json()
    assert status["ready"] is True
    assert status["engine"]["acceptance_by_version"]["3"]["accepted"] == 35
    assert status["trainer"]["state"] == "training"
    assert status["processes"]["engine"] == 980_000_000


async def test_a_loss_that_is_no_number_is_null(client: httpx.AsyncClient, engine: FakeEngineClient) -> None:
    assert engine.service is not None and engine.service.trainer is not None
    engine.service = replace(engine.service, trainer=replace(engine.service.trainer, loss=float("nan")))
    assert (await client.get("/admin/api/status")).json()["trainer"]["loss"] is None


async def test_without_an_engine(client: httpx.AsyncClient, engine: FakeEngineClient) -> None:
    engine.service = None
    answer = await client.get("/admin/api/status")
    assert answer.status_code == 503 and answer.json()["error"]["code"] == "engine_unavailable"


async def test_events_and_versions(client: httpx.AsyncClient) -> None:
    events = (await client.get("/admin/api/events")).json()
    assert events == [{"at_s": 1.0, "kind": "swap", "message": "1 -> 2", "data": {"took_ms": 3.0}}]
    versions = (await client.get("/admin/api/versions")).json()
    assert [version["number"] for version in versions] == [1, 2, 3]
    assert versions[1]["gate"]["candidate"] == 0.31


async def test_history_gives_what_is_new(client: httpx.AsyncClient) -> None:
    async def queries(params: str) -> list[int]:
        return [one["query"] for one in (await client.get(f"/admin/api/history?{params}")).json()]

    assert await queries("") == list(range(10))
    assert await queries("limit=3") == [7, 8, 9]
    assert await queries("after=7") == [8, 9]
    assert await queries("after=9") == []
    assert await queries("after=500") == list(range(10))  # numbers began anew
    assert (await client.get("/admin/api/history?limit=0")).status_code == 400


async def test_levers(client: httpx.AsyncClient, engine: FakeEngineClient) -> None:
    assert (await client.post("/admin/api/pause")).status_code == 204
    assert (await client.post("/admin/api/resume", json={})).status_code == 204
    answer = await client.post("/admin/api/roll_back", json={"to": 1, "reason": "was better"})
    assert answer.json()["number"] == 1
    assert engine.calls == [("pause",), ("resume",), ("roll_back", 1, "was better")]


async def test_roll_back_refused(client: httpx.AsyncClient) -> None:
    answer = await client.post("/admin/api/roll_back", json={"to": 99, "reason": "x"})
    assert answer.status_code == 404
    assert answer.json()["error"] == {
        "message": "there is no drafter version 99",
        "type": "invalid_request_error",
        "param": "to",
        "code": "version_not_found",
    }
    answer = await client.post("/admin/api/roll_back", json={"to": 3, "reason": "x"})
    assert answer.status_code == 409
    assert answer.json()["error"]["code"] == "weights_refused"
    assert answer.json()["error"]["message"] == "version 3 was itself rolled back: worse"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"reason": "x"}, "to"),
        ({"to": None, "reason": "x"}, "to"),
        ({"to": -1, "reason": "x"}, "to"),
        ({"to": "1", "reason": "x"}, "to"),
        ({"to": 1}, "reason"),
        ({"to": 1, "reason": ""}, "reason"),
        ({"to": 1, "reason": "x", "other": 1}, "other"),
    ],
)
async def test_a_roll_back_names_its_version_and_reason(
    client: httpx.AsyncClient, engine: FakeEngineClient, body: dict[str, object], param: str
) -> None:
    answer = await client.post("/admin/api/roll_back", json=body)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param
    assert engine.calls == []


async def test_every_route_needs_the_token(client: httpx.AsyncClient, engine: FakeEngineClient) -> None:
    del client.headers["Authorization"]
    for path in ("status", "events", "history", "versions"):
        assert (await client.get(f"/admin/api/{path}")).status_code == 401
    for path in ("pause", "resume", "roll_back", "logout"):
        body = {"reason": "x"}
        answer = await client.post(f"/admin/api/{path}", json=body, headers={"X-OSD-Admin": "1"})
        assert answer.status_code == 401
    assert engine.calls == []


async def test_the_page_knows_whether_there_is_a_session(client: httpx.AsyncClient) -> None:
    del client.headers["Authorization"]
    client.headers["X-OSD-Admin"] = "1"

    async def signed_in() -> bool:
        page = (await client.get("/admin")).text
        assert ('data-signed-in="yes"' in page) != ('data-signed-in="no"' in page)
        return 'data-signed-in="yes"' in page

    assert not await signed_in()
    assert (await client.post("/admin/api/login", json={"token": TOKEN})).status_code == 204
    assert await signed_in()
    assert (await client.post("/admin/api/logout")).status_code == 204
    assert not await signed_in()


async def test_the_page_loads_nothing_from_elsewhere(client: httpx.AsyncClient) -> None:
    page = await client.get("/admin")
    assert page.headers["content-type"].startswith("text/html")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    for path in ("/admin", "/admin/page.js", "/admin/chart.js", "/admin/figures.js", "/admin/page.css"):
        asset = await client.get(path)
        assert asset.status_code == 200 and asset.headers["x-content-type-options"] == "nosniff"
        without_namespace = asset.text.replace("http://www.w3.org/2000/svg", "")
        assert "http:" not in without_namespace and "https:" not in without_namespace
