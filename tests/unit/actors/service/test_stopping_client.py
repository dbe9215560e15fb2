"""A server that stops while answers are awaited leaves no task behind."""

from __future__ import annotations

import asyncio
import gc
from concurrent.futures import Future
from typing import Any

import pytest

from actors.service.client import RayEngineClient
from tests.kit.actor_fakes import settle
from tests.unit.actors.service.test_client import Reader, query


class _HungHandle:
    """An actor that answers nothing."""

    def call(self, method: str, *args: object) -> Future[Any]:
        return Future()


def test_a_server_that_stops_amid_answers_leaves_nothing_behind(caplog: pytest.LogCaptureFixture) -> None:
    """While its engine is away: asyncio would say of each task that is left that it was destroyed."""

    async def serve() -> None:
        client = RayEngineClient(_HungHandle(), None, _HungHandle())
        reader = Reader(client, query())
        await settle()
        assert not reader.task.done()

    asyncio.run(serve())
    gc.collect()
    assert [record.getMessage() for record in caplog.records] == []
