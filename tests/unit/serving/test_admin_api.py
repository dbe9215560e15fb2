from __future__ import annotations

import asyncio
import csv
import io
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from hashlib import sha256

import httpx
import pytest

from osd.monitor.alerts import Alert
from osd.records.events import Event
from tests.kit.fake_status import fake_buckets, fake_manifest, fake_service
from tests.kit.fakes import FakeEngineClient
from tests.kit.http_client import http_client

TOKEN = "a-long-admin-token"


@pytest.fixture
def engine() -> FakeEngineClient:
    return FakeEngineClient(
        service=fake_service(),
        buckets=fake_buckets(),
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


async def test_history_by_what_is_asked_for(client: httpx.AsyncClient, engine: FakeEngineClient) -> None:
    answer = (await client.get("/admin/api/history?from=-60&by=domain&by=version")).json()
    assert [(one["of"], [v for v in one["figures"]["accepted"] if v]) for one in answer["series"]] == [
        ({"domain": "chat", "version": 1}, [3.0]),
        ({"domain": "code", "version": 2}, [6.0]),
    ]
    assert answer["domains"] == ["chat", "code"] and answer["step_s"] == 5
    assert len(answer["times_s"]) == len(answer["series"][0]["figures"]["accepted"])
    one_domain = (await client.get("/admin/api/history?from=-60&domain=code")).json()
    assert sum(v or 0 for v in one_domain["series"][0]["figures"]["proposed"]) == 8.0
    assert (await client.get("/admin/api/history?from=-60&domain=unknown")).json()["series"] == []


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ("from=tomorrow", "from"),
        ("from=nan", "from"),
        ("from=-5&to=-10", "before to"),
        ("from=1&to=1e300", "ten years"),
        ("step=-1", "step"),
        ("by=prompt", "by"),
        (f"domain={'x' * 300}", "domain"),
    ],
)
async def test_absurd_ranges_are_refused_by_name(client: httpx.AsyncClient, params: str, field: str) -> None:
    answer = await client.get(f"/admin/api/history?{params}")
    assert answer.status_code == 400 and field in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ("from=nan", "from"),
        ("from=5&to=1", "before to"),
        ("limit=0", "limit"),
        ("limit=5001", "limit"),
        ("to=inf", "to"),
    ],
)
async def test_absurd_ranges_of_events_are_refused_by_name(client: httpx.AsyncClient, params: str, field: str) -> None:
    answer = await client.get(f"/admin/api/events?{params}")
    assert answer.status_code == 400 and field in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("policy", {"domain": "code", "length": 17}, "length"),
        ("policy", {"domain": "code", "length": -1}, "length"),
        ("policy", {"domain": "", "length": 1}, "domain"),
        ("freeze", {"domain": "x" * 201}, "domain"),
        ("drain", {"engine": ""}, "engine"),
        ("alerts/silence", {"name": "drift", "for_s": -1}, "for_s"),
        ("alerts/silence", {"name": "drift", "for_s": 1e9}, "for_s"),
    ],
)
async def test_absurd_wishes_are_refused_by_name(
    client: httpx.AsyncClient, engine: FakeEngineClient, path: str, body: dict[str, object], field: str
) -> None:
    answer = await client.post(f"/admin/api/{path}", json=body)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == field
    assert engine.calls == [] and not [one for one in engine.event_log if one.kind == "audit"]


async def test_a_domain_that_nobody_has_asked_in_yet_has_a_policy_already(client: httpx.AsyncClient) -> None:
    assert (await client.post("/admin/api/policy", json={"domain": "next-week", "length": 2})).status_code == 204
    assert (await client.get("/admin/api/wishes")).json()["lengths"] == {"next-week": 2}


async def test_of_two_operators_at_once_both_are_heard(client: httpx.AsyncClient, engine: FakeEngineClient) -> None:
    async def freeze(domain: str, operator: str) -> None:
        body, headers = {"domain": domain}, {"X-OSD-Operator": operator}
        assert (await client.post("/admin/api/freeze", json=body, headers=headers)).status_code == 204

    await asyncio.gather(*(freeze(f"domain-{number}", f"operator-{number}") for number in range(10)))
    assert len((await client.get("/admin/api/wishes")).json()["frozen"]) == 10
    audit = {one.data["who"]: one.data["what"] for one in engine.event_log if one.kind == "audit"}
    assert audit["operator-3 (token)"] == "freeze the domain domain-3" and len(audit) == 10


async def test_events_filter_and_export(client: httpx.AsyncClient, engine: FakeEngineClient) -> None:
    engine.event_log += [
        Event(at_s=2.0, kind="publish", message='=HYPERLINK(1), "quoted"', data={"candidate": 0.5}),
        Event(at_s=3.0, kind="error", message="disk full"),
    ]

    async def messages(params: str) -> list[str]:
        return [one["message"] for one in (await client.get(f"/admin/api/events?{params}")).json()]

    assert await messages("kind=swap&kind=error") == ["1 -> 2", "disk full"]
    assert await messages("text=DISK") == ["disk full"]
    assert await messages("from=2&to=2.5") == ['=HYPERLINK(1), "quoted"']
    assert await messages("limit=1") == ["disk full"]
    assert (await client.get("/admin/api/events?kind=lunch")).status_code == 400
    answer = await client.get("/admin/api/events?format=csv&from=2")
    assert (
        answer.headers["content-type"].startswith("text/csv") and "attachment" in answer.headers["content-disposition"]
    )
    assert list(csv.reader(io.StringIO(answer.text))) == [
        ["time", "kind", "message", "data"],
        ["1970-01-01T00:00:02Z", "publish", '\'=HYPERLINK(1), "quoted"', '{"candidate": 0.5}'],
        ["1970-01-01T00:00:03Z", "error", "disk full", "{}"],
    ]


async def test_a_figure_of_an_event_that_is_no_number_is_null(
    client: httpx.AsyncClient, engine: FakeEngineClient
) -> None:
    engine.event_log.append(Event(at_s=9.0, kind="refuse", message="diverged", data={"candidate": float("nan")}))
    found = (await client.get("/admin/api/events?text=diverged")).json()
    assert found == [{"at_s": 9.0, "kind": "refuse", "message": "diverged", "data": {"candidate": None}}]


async def test_alerts_are_acknowledged_and_silenced(client: httpx.AsyncClient, engine: FakeEngineClient) -> None:
    engine.held_alerts = [
        Alert(name="drift", subject="code", severity="warning", state="firing", since_s=1.0, why="fell")
    ]
    body = {"name": "drift", "subject": "code"}
    headers = {"X-OSD-Operator": "anna"}
    assert (await client.post("/admin/api/alerts/acknowledge", json=body, headers=headers)).status_code == 204
    (alert,) = (await client.get("/admin/api/alerts")).json()["alerts"]
    assert alert["acknowledged_by"] == "anna (token)"
    gone = await client.post("/admin/api/alerts/acknowledge", json={"name": "gone"})
    assert gone.status_code == 404 and gone.json()["error"]["code"] == "alert_not_found"
    assert (await client.post("/admin/api/alerts/silence", json={"name": "drift", "for_s": 60})).status_code == 204
    assert "drift" in (await client.get("/admin/api/alerts")).json()["silences"]


async def test_every_lever_leaves_an_audit_entry(client: httpx.AsyncClient, engine: FakeEngineClient) -> None:
    engine.event_log.clear()
    await client.post("/admin/api/pause", headers={"X-OSD-Operator": "anna"})
    await client.post("/admin/api/resume", headers={"X-OSD-Operator": "<script>"})
    await client.post("/admin/api/roll_back", json={"to": 1, "reason": "was better"})
    await client.post("/admin/api/roll_back", json={"to": 99, "reason": "was better"})  # refused: it did nothing
    said = [(one.kind, one.message) for one in engine.event_log]
    assert said == [
        ("audit", "anna (token) from 127.0.0.1: pause training"),
        ("audit", "token from 127.0.0.1: resume training"),
        ("audit", "token from 127.0.0.1: serve version 1: was better"),
    ]


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


async def test_a_version_is_pinned_and_unpinned(client: httpx.AsyncClient, engine: FakeEngineClient) -> None:
    answer = await client.post("/admin/api/pin", json={"to": 1, "reason": "a demonstration"})
    assert answer.status_code == 204
    assert (await client.post("/admin/api/unpin")).status_code == 204
    assert engine.calls == [("pin", 1, "a demonstration"), ("unpin",)]
    assert (await client.post("/admin/api/pin", json={"to": 99, "reason": "x"})).status_code == 404


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
    for path in ("status", "events", "history", "versions", "engines", "alerts", "live"):
        assert (await client.get(f"/admin/api/{path}")).status_code == 401
    for path in ("pause", "resume", "roll_back", "pin", "unpin", "logout"):
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
    names = re.findall(r'(?:href|src)="admin/([\w.]+)"', page.text)
    while names:
        name = names.pop()
        asset = await client.get(f"/admin/{name}")
        assert asset.status_code == 200 and asset.headers["x-content-type-options"] == "nosniff"
        code = re.sub(r"^\s*(//|/?\*).*$", "", asset.text, flags=re.MULTILINE)  # comments name authors' sites
        assert "http:" not in code and "https:" not in code and "url(" not in code
        names += re.findall(r'from "\./([\w.]+)"', asset.text)
    assert (await client.get("/admin/../app.py")).status_code == 404
    assert (await client.get("/admin/page.html")).status_code == 404
    assert (await client.get("/admin/uPlot.LICENSE")).status_code == 404
