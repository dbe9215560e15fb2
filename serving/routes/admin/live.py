"""/admin/api/live: what the page shows, sent as it changes (server-sent events)."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import asdict
from functools import partial
from math import isfinite
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import Response

from osd.records.errors import EngineUnavailableError
from serving.answering.sse import EventStream, Framing, named_frame
from serving.guards.admission import admits
from serving.guards.routes import SESSION_COOKIE, with_admin_token
from serving.routes.admin.engines import EngineNow
from serving.routes.admin.wishes import WishesNow
from serving.services import Services, ServicesDep
from serving.wire.errors import ApiError

router = APIRouter(prefix="/admin/api", route_class=admits(with_admin_token), include_in_schema=False)
_log = logging.getLogger(__name__)
T = TypeVar("T")
_NUM_EVENTS = 100
_MOST_VIEWERS = 16
_LONGEST_S = 1800.0
"""A stream is closed after this and the browser opens another, so that an ended session is noticed by then."""


class Snapshots:
    """One snapshot every `tick_s` seconds for all viewers, and none without any."""

    def __init__(self, services: Services, tick_s: float = 2.0) -> None:
        self.tick_s = tick_s
        self._services = services
        self._snapshot: dict[str, Any] = {}
        self._number = 0
        self._changed = asyncio.Condition()
        self._num_viewers = 0
        self._is_closed = False
        self._task: asyncio.Task[None] | None = None

    async def follow(self, session: str) -> AsyncGenerator[Mapping[str, Any] | None, None]:
        """Every snapshot from now on, until the session ends or the server stops."""
        seen, until_s = 0, time.monotonic() + _LONGEST_S
        self._num_viewers += 1
        if self._task is None:
            self._task = asyncio.create_task(self._look_forever())
        try:
            while time.monotonic() < until_s and await self._is_open(session):
                async with self._changed:
                    while self._number <= seen and not self._is_closed:
                        await self._changed.wait()
                    seen = self._number
                if self._is_closed:
                    return
                yield self._snapshot
        finally:
            self._num_viewers -= 1
            if not self._num_viewers and self._task is not None:
                self._task.cancel()
                self._task = None
                self._number = 0

    async def _is_open(self, session: str) -> bool:
        """Whether a viewer's session is open; True for viewers without one, and while nobody can be asked about it."""
        try:
            return not session or await self._services.admin.has_session(session)
        except EngineUnavailableError:
            return True

    async def close(self) -> None:
        """End every viewer's stream."""
        async with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    @property
    def is_full(self) -> bool:
        """Whether further viewers are refused."""
        return self._num_viewers >= _MOST_VIEWERS

    async def _look_forever(self) -> None:
        while True:
            try:
                snapshot = await self._look()
            except Exception:
                _log.exception("no snapshot for the admin page; going on")
            else:
                async with self._changed:
                    self._snapshot, self._number = snapshot, self._number + 1
                    self._changed.notify_all()
            await asyncio.sleep(self.tick_s)

    async def _look(self) -> dict[str, Any]:
        client = self._services.client
        status, alerts, engines, versions, events, wishes = await asyncio.gather(
            _or_none(client.status),
            _or_none(client.alerts),
            _or_none(client.engines),
            _or_none(client.versions),
            _or_none(partial(client.events, _NUM_EVENTS)),
            _or_none(client.wishes),
        )
        return {
            "type": "snapshot",
            "at_s": time.time(),
            "status": plain_json(asdict(status)) if status else None,
            "alerts": plain_json(asdict(alerts)) if alerts else None,
            "engines": [plain_json(asdict(EngineNow.of(one))) for one in engines or ()],
            "versions": [plain_json(asdict(one)) for one in versions or ()],
            "wishes": plain_json(asdict(WishesNow.of(wishes))) if wishes else None,
            "events": [plain_json(asdict(one)) for one in events or ()],
        }


async def _or_none(ask: Callable[[], Awaitable[T]]) -> T | None:
    """The answer; None while nobody is there to give it. Nothing is asked where this is cancelled before it runs."""
    try:
        return await ask()
    except EngineUnavailableError:
        return None


@router.get("/live")
async def live(http: Request, services: ServicesDep) -> Response:
    """A `snapshot` event every two seconds: status, alerts, engines, versions and the newest events."""
    snapshots = http.app.state.snapshots
    if snapshots.is_full:
        raise ApiError(
            429, f"{_MOST_VIEWERS} pages are open; close one.", code="too_many_pages", headers={"Retry-After": "10"}
        )
    events = snapshots.follow(http.cookies.get(SESSION_COOKIE, ""))
    return EventStream(events, Framing(frame=named_frame, end=b""))


def plain_json(value: Any) -> Any:
    """What JSON can hold: text keys, and null for NaN and infinity."""
    if isinstance(value, dict):
        return {str(name): plain_json(one) for name, one in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain_json(one) for one in value]
    if isinstance(value, float) and not isfinite(value):
        return None
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)
