"""The engine actor: target and colocated drafter in one process. A shell; the work is in `osd`.

There is no Ray call per round or token: a client has one long poll outstanding, which brings whatever is ready for all
its queries. Actor methods run on one event loop; the engine has its own thread.
"""

from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING

from actors.event_log import EventLog
from actors.mailbox import Mailboxes
from osd.config import Config
from osd.types import AcceptancePoint, EngineStatus, Event, Request, TokenDelta, WeightManifest

if TYPE_CHECKING:
    from osd.assemble import EngineAssembly

_REAP_INTERVAL_S = 5.0


class EngineActor:
    """Serves queries. Loading goes on in a thread, so that the actor answers at once and can say why loading failed.

    Args:
        config: everything.
        redis_url: where outcomes go.
    """

    def __init__(self, config: Config, redis_url: str) -> None:
        self._config, self._redis_url = config, redis_url
        self._events = EventLog()
        self._mailboxes = Mailboxes()
        self._reaper: asyncio.Task[None] | None = None
        self._opening: Future[EngineAssembly] = Future()
        threading.Thread(target=self._open, name="osd-open", daemon=True).start()

    async def ready(self) -> int:
        """Wait until the engine serves; returns the process id.

        Raises:
            OsdError: it cannot be loaded, and why.
        """
        await self._assembly()
        return os.getpid()

    async def submit(self, client_id: str, request: Request) -> int:
        """Queue a query; raises what `Engine.submit` raises. Returns the process id: which engine has it."""
        assembly = await self._assembly()
        self._mailboxes.expect(client_id, request.request_id)
        try:
            await asyncio.wrap_future(assembly.loop.call(lambda engine: engine.submit(request)))
        except Exception:
            self._mailboxes.forget(request.request_id)
            raise
        return os.getpid()

    async def cancel(self, request_id: str) -> None:
        """Free a query's row."""
        (await self._assembly()).loop.cancel(request_id)

    async def poll(self, client_id: str, wait_s: float) -> tuple[int, list[TokenDelta]]:
        """Long poll: (process id, everything ready for a client's queries)."""
        await self._assembly()
        return os.getpid(), await self._mailboxes.poll(client_id, wait_s)

    async def status(self) -> EngineStatus:
        """A snapshot."""
        assembly = await self._assembly()
        return await asyncio.wrap_future(assembly.loop.call(lambda engine: engine.status()))

    async def history(self, limit: int) -> list[AcceptancePoint]:
        """The newest finished queries, oldest first."""
        assembly = await self._assembly()
        return await asyncio.wrap_future(assembly.loop.call(lambda engine: engine.history(limit)))

    async def utilisation(self) -> float:
        """Share of the last seconds spent in steps; what the trainer yields to."""
        return (await self._assembly()).loop.utilisation()

    async def events(self, limit: int) -> list[Event]:
        """The newest events, oldest first."""
        return self._events.newest(limit)

    async def versions(self) -> list[WeightManifest]:
        """Every drafter version, oldest first."""
        return (await self._assembly()).store.list()

    async def roll_back(self, to: int | None, reason: str) -> WeightManifest:
        """Point the store at an older version, and swap it in."""
        return (await self._assembly()).roll_back(to, reason)

    async def ping(self) -> int:
        """The process id."""
        return os.getpid()

    async def _assembly(self) -> EngineAssembly:
        if self._reaper is None:
            self._mailboxes.attach()
            self._reaper = asyncio.create_task(self._reap())
        return await asyncio.wrap_future(self._opening)

    async def _reap(self) -> None:
        """Cancel the queries of clients whose process is gone."""
        while True:
            await asyncio.sleep(_REAP_INTERVAL_S)
            for request_id in self._mailboxes.abandoned():
                (await self._assembly()).loop.cancel(request_id)

    def _open(self) -> None:
        try:
            from osd.assemble import assemble_engine

            assembly = assemble_engine(
                self._config, redis_url=self._redis_url, deliver=self._mailboxes.post, on_event=self._events.add
            )
        except BaseException as error:  # noqa: BLE001 - it belongs to whoever waits for the engine
            self._opening.set_exception(error)
        else:
            self._opening.set_result(assembly)
