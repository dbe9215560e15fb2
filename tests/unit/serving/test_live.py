"""The live stream: one look for all viewers, what is away is null, and it ends with the session."""

from __future__ import annotations

import asyncio
import json
from hashlib import sha256

from osd.config.settings import load_config
from serving.app import create_app
from serving.routes.admin.live import Snapshots
from tests.kit.fake_status import fake_manifest, fake_report, fake_service
from tests.kit.fakes import FakeCodec, FakeEngineClient

TOKEN_SHA256 = sha256(b"token").hexdigest()


def snapshots_of(engine: FakeEngineClient) -> Snapshots:
    app = create_app(load_config(), engine, FakeCodec(), admin_token_sha256=TOKEN_SHA256)
    snapshots = app.state.snapshots
    assert isinstance(snapshots, Snapshots)
    snapshots.tick_s = 0.001
    return snapshots


async def test_a_snapshot_holds_what_the_page_shows_and_is_json() -> None:
    engine = FakeEngineClient(service=fake_service(), manifests=[fake_manifest(1)], reports=[fake_report()])
    stream = snapshots_of(engine).follow("")
    first = await anext(stream)
    await stream.aclose()
    assert first is not None
    shown = json.loads(json.dumps(first))
    assert shown["status"]["engine"]["drafter_version"] == 3
    assert shown["versions"][0]["number"] == 1 and shown["engines"][0]["engine_id"] == "engine"
    assert shown["alerts"]["rules"] == ["drift", "trainer_stuck"]


async def test_what_is_away_is_null_and_comes_back() -> None:
    engine = FakeEngineClient(service=None)
    stream = snapshots_of(engine).follow("")
    first = await anext(stream)
    assert first is not None and first["status"] is None and first["alerts"] is not None
    engine.service = fake_service()
    async with asyncio.timeout(60):
        async for snapshot in stream:
            if snapshot and snapshot["status"]:
                break
    await stream.aclose()


async def test_viewers_share_one_look_and_none_looks_without_viewers() -> None:
    engine = FakeEngineClient(service=fake_service())
    snapshots = snapshots_of(engine)
    one, other = snapshots.follow(""), snapshots.follow("")
    assert (await anext(one)) is (await anext(other))
    assert snapshots._task is not None
    await one.aclose()
    assert snapshots._task is not None
    await other.aclose()
    assert snapshots._task is None


async def test_an_ended_session_ends_the_stream() -> None:
    engine = FakeEngineClient(service=fake_service())
    app = create_app(load_config(), engine, FakeCodec(), admin_token_sha256=TOKEN_SHA256)
    session = await app.state.services.admin.open_session()
    stream = app.state.snapshots.follow(session)
    await anext(stream)
    await app.state.services.admin.close_session(session)
    async with asyncio.timeout(60):
        async for _ in stream:
            pass
