"""The engine actor: runs the target and its drafter in one process. Thin; the engine itself is in `osd`.

There is no Ray call per round or token: each client has one outstanding long poll, which returns whatever is ready for
any of its queries. Actor methods run on one event loop; the engine has a thread of its own.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import TYPE_CHECKING

from actors.calls.ask import Ask, ask_by_ray
from actors.engine.engine_report import EngineReports
from actors.engine.mailbox import Mailboxes
from actors.engine.reporter import Reporter
from actors.process.event_log import EventLog
from actors.process.node import node_id
from osd.config.settings import Config
from osd.fleet.heartbeat import EngineOrders
from osd.machine.logs import join_logs
from osd.machine.memory import exclude_from_gc, trim_heap
from osd.records.drafter_id import drafter_name
from osd.records.errors import EngineUnavailableError, QueueFullError
from osd.records.events import Event
from osd.records.query import Request, TokenDelta
from osd.records.status import AcceptancePoint, EngineStatus
from osd.records.version import WeightManifest

if TYPE_CHECKING:
    from osd.assembly.assemble import EngineAssembly
    from osd.drafters.router import DomainRouter
    from osd.engine.engine import Engine


_ROOM_INTERVALS = 3
"""How long room is left for training without being ordered again, in report intervals."""


def as_ordered(request: Request, orders: EngineOrders) -> Request:
    """The query with the speculation length that the operator fixed for its domain, unless it asks for one itself.

    Raises:
        QueueFullError: the engine drains, and the query is new.
    """
    if orders.draining and not request.resume_ids:
        raise QueueFullError("this engine is being drained and takes no new queries; try again later")
    if request.speculation_length is None and request.domain in orders.lengths:
        return replace(request, speculation_length=orders.lengths[request.domain])
    return request


def routed(request: Request, router: DomainRouter | None) -> Request:
    """The query under the domain that the router guesses, if nobody named one and its prompt tells."""
    if router is None or request.domain_from != "none" or (domain := router.route(request.prompt_ids)) is None:
        return request
    return replace(request, domain=domain, domain_from="router")


def versions_of(orders: EngineOrders, kind: str) -> dict[str, int]:
    """The version that each drafter has to serve, by the drafter's name.

    Args:
        orders: the supervisor's.
        kind: of the base drafter.
    """
    own = {drafter_name(kind, domain): version for domain, version in orders.domain_versions.items()}
    return own if orders.version is None else {kind: orders.version, **own}


def judged_of(orders: EngineOrders, kind: str) -> set[str]:
    """The names of the drafters whose versions are being compared; arguments as of `versions_of`."""
    return {drafter_name(kind, domain) for domain in orders.judged_domains} | ({kind} if orders.is_judged else set())


class EngineActor:
    """Serves queries. Loads in a thread, so that the actor answers meanwhile and can say why loading failed.

    Args:
        config: the whole configuration.
        redis_url: the Redis of the outcome stream.
        supervisor: name of the supervisor, to which the engine reports; empty: it has none.
        ask: calls the supervisor.
        assemble: loads and assembles the engine; None: `osd.assembly.assemble.assemble_engine`.
        mailboxes: hold what clients have not fetched yet; None: with the default patience.
        reap_interval_s: pause between two searches for clients that are gone.
        retry_s: pause after loading failed.
    """

    def __init__(
        self,
        config: Config,
        redis_url: str,
        supervisor: str = "",
        *,
        ask: Ask = ask_by_ray,
        assemble: Callable[..., EngineAssembly] | None = None,
        mailboxes: Mailboxes | None = None,
        reap_interval_s: float = 5.0,
        retry_s: float = 5.0,
    ) -> None:
        join_logs("engine")
        self._config, self._redis_url, self._assemble = config, redis_url, assemble
        self._supervisor, self._ask = supervisor, ask
        self._reap_interval_s, self._retry_s = reap_interval_s, retry_s
        self._reporter: Reporter | None = None
        self.orders = EngineOrders(session="")
        """The supervisor's last."""
        self._events = EventLog()
        self._progress: list[str] = []
        self._mailboxes = mailboxes or Mailboxes()
        self._reaper: asyncio.Task[None] | None = None
        self._opening: Future[EngineAssembly] = Future()
        threading.Thread(target=self._open, name="osd-open", daemon=True).start()

    async def ready(self) -> None:
        """Wait until the engine serves.

        Raises:
            OsdError: the engine cannot be loaded.
        """
        await asyncio.wrap_future(self._opening)

    async def progress(self) -> list[str]:
        """What the engine has done so far apart from serving, one line each: loading, compiling kernels."""
        return list(self._progress)

    async def submit(self, client_id: str, request: Request) -> str:
        """Queue a query; raises what `Engine.submit` raises. A query that is held already is not queued again.

        While the engine drains, it raises QueueFullError for queries that are new.

        Returns:
            The id of the client's mailbox, which tells this engine process from others.
        """
        assembly = await self._assembly()
        loop, constraint = assembly.loop, None
        if request.constraint is not None or request.thinking is not None:  # in a thread: it may take a second
            constraint = await asyncio.to_thread(assembly.grammars.of_query, request)
        box_id = self._mailboxes.open(client_id)
        request = as_ordered(routed(request, assembly.router), self.orders)
        if not self._mailboxes.holds(client_id, request.request_id):

            def take(engine: Engine) -> None:
                engine.submit(request, constraint)
                # On the engine's thread: after deltas of an abandoned query with this id, before those of this query.
                self._mailboxes.expect(client_id, request.request_id)

            await asyncio.wrap_future(loop.call(take))
        return box_id

    async def cancel(self, request_id: str) -> None:
        """Cancel a query, which frees its row."""
        (await self._assembly()).loop.cancel(request_id)

    async def poll(
        self, client_id: str, wait_s: float, box_id: str | None, num_received: int
    ) -> tuple[str, list[TokenDelta]]:
        """Long poll for the deltas of a client's queries; see `Mailboxes.poll`."""
        await self._assembly()
        return await self._mailboxes.poll(client_id, wait_s, box_id, num_received)

    async def leave(self, client_id: str) -> None:
        """Forget a client that needs no more deltas."""
        self._mailboxes.close(client_id)

    async def status(self) -> EngineStatus:
        """A snapshot of the engine's status."""
        loop = (await self._assembly()).loop
        return await asyncio.wrap_future(loop.call(lambda engine: engine.status()))

    async def history(self, limit: int) -> list[AcceptancePoint]:
        """Acceptance of the newest finished queries, oldest first."""
        loop = (await self._assembly()).loop
        return await asyncio.wrap_future(loop.call(lambda engine: engine.history(limit)))

    async def events(self, limit: int) -> list[Event]:
        """The newest events, oldest first."""
        return self._events.newest(limit)

    async def versions(self, domain: str = "") -> list[WeightManifest]:
        """Every version of a domain's own drafter, or (empty) of the base drafter, oldest first."""
        assembly = await self._assembly()
        if not domain:
            return await asyncio.to_thread(assembly.store.list)
        from osd.io.domains.store import open_versions

        target_id = await asyncio.wrap_future(assembly.loop.call(lambda engine: engine.target.target_id))
        name = drafter_name(self._config.drafter.kind, domain)
        return await asyncio.to_thread(open_versions(self._config, target_id, name).list)

    async def ping(self) -> int:
        """This process's id."""
        return os.getpid()

    async def close(self) -> None:
        """Stop serving, and write recorded outcomes to the stream or the spill file."""
        if self._reporter is not None:
            await asyncio.to_thread(self._reporter.close)
        if self._opening.done() and not self._opening.exception():
            await asyncio.to_thread(self._opening.result().close)

    async def _assembly(self) -> EngineAssembly:
        if self._reaper is None:
            self._mailboxes.attach()
            self._reaper = asyncio.create_task(self._reap())
        try:
            return await asyncio.wrap_future(self._opening)
        except Exception as error:
            raise EngineUnavailableError(f"the engine cannot be loaded: {error}") from None

    async def _reap(self) -> None:
        """Cancel queries of clients that are gone, and return freed memory to the system (takes about 2 ms)."""
        while True:
            await asyncio.sleep(self._reap_interval_s)
            loop = (await self._assembly()).loop
            for request_id in self._mailboxes.abandoned():
                loop.cancel(request_id)
            trim_heap()

    def _open(self) -> None:
        """Load the engine. After a failure it is tried again, since the cause may pass; queries fail until then."""
        from osd.assembly.assemble import assemble_engine

        assemble = self._assemble or assemble_engine
        while True:
            try:
                assembly = assemble(
                    self._config,
                    redis_url=self._redis_url,
                    deliver=self._mailboxes.post,
                    on_event=self._events.add,
                    on_progress=self._progress.append,
                )
            except Exception as error:  # raised again to those who wait for the engine
                self._opening.set_exception(error)
            else:
                exclude_from_gc()
                self._report(assembly)
                self._opening.set_result(assembly)
                return
            time.sleep(self._retry_s)
            self._opening = Future()

    def _report(self, assembly: EngineAssembly) -> None:
        """Start reporting to the supervisor and obeying its orders."""
        if not self._supervisor:
            return
        interval_s = self._config.cluster.report_interval_s
        reports, kind = EngineReports(self._config.engine.id, assembly, node_id()), self._config.drafter.kind

        def obey(orders: EngineOrders) -> None:
            if orders.drifting != self.orders.drifting:
                assembly.loop.call(lambda engine: engine.prefer_lookup(orders.drifting))
            self.orders = orders
            if assembly.hot_swap:
                assembly.hot_swap.order(versions_of(orders, kind))
            assembly.loop.call(lambda engine: engine.set_judged(judged_of(orders, kind)))
            if assembly.recorder:
                assembly.recorder.share = orders.record_share
            # Of the orders, only this one ends by itself: without a supervisor nobody knows whether training goes on.
            assembly.loop.leave_room(orders.training_share, _ROOM_INTERVALS * interval_s)

        self._reporter = Reporter(self._ask, self._supervisor, reports.make, obey, interval_s=interval_s)
