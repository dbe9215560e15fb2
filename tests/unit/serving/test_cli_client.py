"""`osd status` and `osd chat`, which talk to a server."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from typing import Any

import pytest

from osd.config.settings import load_config
from osd.records.status import TrainerStatus
from serving.app import create_app
from tests.kit.cli_kit import the_error
from tests.kit.fake_status import fake_service
from tests.kit.fakes import FakeCodec, FakeEngineClient
from tests.kit.http_server import serve


@pytest.fixture
def engine() -> FakeEngineClient:
    return FakeEngineClient(answer="Hello [bold] :smile:", service=fake_service())


@pytest.fixture
def url(engine: FakeEngineClient) -> Iterator[str]:
    digest = sha256(b"secret").hexdigest()
    with serve(create_app(load_config(), engine, FakeCodec(), admin_token_sha256=digest)) as url:
        yield url


def rows_of(table: str) -> dict[str, str]:
    """The two columns of every table that was printed."""
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in table.splitlines() if "│" in line]
    return dict(cells)


def test_status_of_a_server(osd: Any, url: str) -> None:
    status, out, _ = osd("status", "--url", url)
    assert status == 0 and f"{url}: ready" in out
    status, out, err = osd("status", "--url", url, "--token", "secret")
    assert status == 0, err
    rows = rows_of(out)
    assert rows["drafter"] == "feature v3" and rows["speculation length"] == "3"
    assert rows["acceptance rate"] == "30.0% of proposed tokens"
    assert rows["acceptance length"] == "2.07 tokens a round"
    assert rows["roll-backs"] == "2 automatic, 1 by hand"
    assert rows["domain sql"] == "v1 of its own"
    assert rows["state"] == "training" and rows["published"] == "v3"
    assert rows["redis"] == "34 MB"
    status, out, err = osd("status", "--url", url, "--token", "wrong")
    assert status == 2 and "admin token" in err and err.count("\n") == 1


def test_status_tells_off_from_away(osd: Any, url: str, engine: FakeEngineClient) -> None:
    service = engine.service
    assert service is not None and service.engine is not None
    plain = replace(service.engine, speculation_enabled=False)
    engine.service = replace(service, engine=plain, trainer=TrainerStatus(state="off", message="not asked"))
    rows = rows_of(osd("status", "--url", url, "--token", "secret")[1])
    assert rows["state"] == "off: not asked" and "steps" not in rows
    assert rows["speculation length"] == "off" and rows["drafter"] == "feature v3, not in use"
    engine.service = replace(service, trainer=None)
    assert rows_of(osd("status", "--url", url, "--token", "secret")[1])["state"] == "no answer"
    engine.service = None
    assert "no engine yet" in osd("status", "--url", url, "--token", "secret")[2]


def test_chat_with_a_server(osd: Any, url: str, engine: FakeEngineClient) -> None:
    status, out, err = osd("chat", "--url", url, "hi")
    assert status == 0 and "Hello [bold] :smile:" in out, err
    assert "of 28 proposed in 7 rounds, acceptance length 2.71, drafter v3" in out
    assert "context" in the_error(osd("chat", "--url", url, "x" * 200))
    engine.answer = "!"
    assert "decoded plainly: nothing proposed in 0 rounds" in osd("chat", "--url", url, "hi")[1]
