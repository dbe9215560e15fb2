"""An asynchronous client of the engine and the other actors, which hides Ray from serving.

consumes: the engine actor's long poll, one outstanding at a time
waits for: deltas of any open query; without open queries, for one to be opened
is unblocked by: a delta, `generate`
on failure: when the engine dies, open queries are submitted to the restarted engine with what was already delivered
    (`resume_ids`, `resume_chars`), so their readers see a pause; if no engine answers in time, they get an
    EngineUnavailableError
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from actors.calls.handle import ActorAwayError, ActorHandle
from actors.process.resident_memory import resident_bytes
from actors.service.delivered import Delivered
from osd.fleet.heartbeat import EngineReport
from osd.monitor.alerts import AlertsAnswer
from osd.monitor.buckets import HistoryAnswer, HistoryQuery
from osd.monitor.wishes import Wishes
from osd.records.errors import EngineUnavailableError, QueueFullError
from osd.records.events import Event
from osd.records.query import Request, TokenDelta
from osd.records.status import ServiceStatus, TrainerStatus
from osd.records.version import WeightManifest

T = TypeVar("T")
_log = logging.getLogger(__name__)
_POLL_S = 10.0
_MAX_OWN_EVENTS = 50
_ASK_TIMEOUT_S = 15.0
_AWAY = (ActorAwayError, TimeoutError)


@dataclass(slots=True, eq=False)
class _OpenQuery(Delivered):
    """One query in progress, with the deltas that wait for its reader."""

    deltas: asyncio.Queue[TokenDelta | Exception] = field(default_factory=asyncio.Queue)
    box_id: str | None = None
    """Id of the mailbox that receives its deltas, which tells in which engine process the query is."""
    is_submitting: bool = True

    def take(self, delta: TokenDelta) -> None:
        Delivered.take(self, delta)
        self.deltas.put_nowait(delta)


class Driver(Protocol):
    """The part of `driver_keeper.DriverKeeper` that the client uses."""

    num_restarts: int
    training_paused: bool | None

    def events(self, limit: int) -> list[Event]:
        """The newest events, oldest first."""
        ...


class RayEngineClient:
    """Implements `serving.engine_client.EngineClient` over actor handles.

    Args:
        engine: the engine actor.
        distiller: the distiller actor; None if training is off.
        supervisor: the supervisor actor.
        driver: restarts Ray when it dies; None in a Ray that others manage.
        give_up_s: how long open queries wait for a restarted engine.
        processes: further processes whose resident memory `status` reports: name to a function that returns the id.
        retry_s: pause before an engine that is away or full is asked again.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        engine: ActorHandle,
        distiller: ActorHandle | None,
        supervisor: ActorHandle,
        *,
        driver: Driver | None = None,
        give_up_s: float = 180.0,
        processes: Mapping[str, Callable[[], int | None]] | None = None,
        retry_s: float = 0.25,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine, self._distiller, self._supervisor = engine, distiller, supervisor
        self._driver = driver
        self._give_up_s, self._retry_s, self._clock = give_up_s, retry_s, clock
        self._processes = {"server": os.getpid, **(processes or {})}
        self._client_id = uuid.uuid4().hex
        self._open: dict[str, _OpenQuery] = {}
        self._opened = asyncio.Event()
        self._box_id: str | None = None
        self._num_received = 0
        """Number of deltas received from that mailbox."""
        self._poller: asyncio.Task[None] | None = None

    async def generate(self, request: Request) -> AsyncGenerator[TokenDelta, None]:
        """Stream one query's answer (see `serving.engine_client.EngineClient`)."""
        if self._poller is None:
            self._poller = asyncio.create_task(self._poll_forever())
        query = self._open[request.request_id] = _OpenQuery(request)
        self._opened.set()
        try:
            await self._submit(query)
            finished = False
            while not finished:
                delta = await query.deltas.get()
                if isinstance(delta, Exception):
                    raise delta
                finished = delta.finish_reason is not None
                yield delta
        finally:
            self._open.pop(request.request_id, None)
            if not query.is_finished:
                self._cancel(request.request_id)

    async def status(self) -> ServiceStatus:
        """A snapshot; parts whose actor does not answer are None."""
        engine, trainer, restarts, actors, fleet = await asyncio.gather(
            _or_none(_ask(self._engine, "status")),
            _or_none(_ask(self._distiller, "status")) if self._distiller else _untrained(),
            _or_none(_ask(self._supervisor, "restarts")),
            _or_none(_ask(self._supervisor, "processes")),
            _or_none(_ask(self._supervisor, "fleet_status")),
        )
        here = resident_bytes({name: find() for name, find in self._processes.items()})
        return ServiceStatus(
            ready=engine is not None,
            engine=engine,
            trainer=trainer,
            versions=fleet.versions if fleet is not None else None,
            spare=fleet.spare if fleet is not None else None,
            stream=fleet.stream if fleet is not None else None,
            domains=fleet.domains if fleet is not None else {},
            events=fleet.events if fleet is not None else {},
            restarts={**(restarts or {}), **({"ray": self._driver.num_restarts} if self._driver else {})},
            processes={**here, **(actors or {})},
        )

    async def events(self, limit: int, from_s: float = 0.0, to_s: float = math.inf) -> list[Event]:
        """The newest events of all processes in a range of time, oldest first."""
        for event in self._driver.events(_MAX_OWN_EVENTS) if self._driver else []:
            await _or_none(_ask(self._supervisor, "mark", event))
        recorded: list[Event] | None = await _or_none(_ask(self._supervisor, "recorded", from_s, to_s, limit))
        if recorded is not None:
            return recorded
        return [one for one in await self._remembered_events(limit) if from_s <= one.at_s <= to_s]

    async def _remembered_events(self, limit: int) -> list[Event]:
        """What the other processes remember, while the supervisor is away."""
        actors = [actor for actor in (self._engine, self._distiller, self._supervisor) if actor is not None]
        parts = await asyncio.gather(*(_or_none(_ask(actor, "events", limit)) for actor in actors))
        own = self._driver.events(limit) if self._driver else []
        merged = sorted((event for part in (*parts, own) for event in part or []), key=lambda event: event.at_s)
        return merged[-limit:]

    async def history(self, query: HistoryQuery) -> HistoryAnswer:
        """Read the operator's history."""
        answer: HistoryAnswer = await require(self._supervisor, "history", query)
        return answer

    async def engines(self) -> list[EngineReport]:
        """The latest report of every engine."""
        reports: list[EngineReport] = await require(self._supervisor, "engines")
        return reports

    async def alerts(self) -> AlertsAnswer:
        """Pending and firing alerts, and silenced rules."""
        answer: AlertsAnswer = await require(self._supervisor, "alerts")
        return answer

    async def acknowledge(self, name: str, subject: str, who: str) -> None:
        """Somebody takes care of an alert."""
        await require(self._supervisor, "acknowledge", name, subject, who)

    async def silence(self, name: str, for_s: float, who: str) -> None:
        """Tell nobody about a rule's alerts for a while."""
        await require(self._supervisor, "silence", name, for_s, who)

    async def wishes(self) -> Wishes:
        """What the operator has asked for and holds."""
        wishes: Wishes = await require(self._supervisor, "wishes")
        return wishes

    async def set_length(self, domain: str, length: int | None) -> None:
        """Fix the speculation length of a domain's queries; None: chosen by goodput."""
        await require(self._supervisor, "set_length", domain, length)

    async def set_frozen(self, domain: str, frozen: bool) -> None:
        """Learn from a domain no more, or again."""
        await require(self._supervisor, "set_frozen", domain, frozen)

    async def set_draining(self, engine_id: str, draining: bool) -> None:
        """Give an engine no new queries, or again."""
        await require(self._supervisor, "set_draining", engine_id, draining)

    async def train_now(self) -> None:
        """Train until the gate's next decision, however busy the engine is."""
        await require(self._supervisor, "train_now")

    async def publish_candidate(self) -> None:
        """Publish the trainer's weights as they are, whatever the gate says."""
        await require(self._supervisor, "publish_candidate")

    async def mark(self, event: Event) -> None:
        """Keep an event in the history."""
        await require(self._supervisor, "mark", event)

    async def versions(self, domain: str = "") -> list[WeightManifest]:
        """Every version of a domain's own drafter, or (empty) of the base drafter, oldest first."""
        versions: list[WeightManifest] = await require(self._engine, "versions", domain)
        return versions

    async def pause_training(self) -> None:
        """Stop training until it is resumed, also across restarts of the distiller or of all of Ray."""
        await self._set_training_paused(True)

    async def resume_training(self) -> None:
        """Resume training."""
        await self._set_training_paused(False)

    async def roll_back(self, to: int, reason: str, domain: str = "") -> WeightManifest:
        """Serve version `to` of a domain's own drafter, or (empty) of the base drafter, again."""
        restored: WeightManifest = await require(self._supervisor, "roll_back", to, reason, domain)
        return restored

    async def pin(self, version: int, reason: str, domain: str = "") -> None:
        """Serve this drafter version whatever is published."""
        await require(self._supervisor, "pin", version, reason, domain)

    async def unpin(self, domain: str = "") -> None:
        """Try newer drafter versions again."""
        await require(self._supervisor, "unpin", domain)

    async def _set_training_paused(self, paused: bool) -> None:
        await require(self._supervisor, "set_training_paused", paused)
        if self._driver:
            self._driver.training_paused = paused

    async def _submit(self, query: _OpenQuery) -> None:
        """Submit a new query to the engine; if the engine dies meanwhile, the poller submits the query again."""
        try:
            query.box_id = await _ask(self._engine, "submit", self._client_id, query.request, timeout_s=None)
        except _AWAY as error:
            _log.debug("the engine is away, a query waits for it: %s", type(error).__name__)
        except Exception:
            query.is_finished = True
            raise
        finally:
            query.is_submitting = False

    async def _poll_forever(self) -> None:
        away_since_s: float | None = None
        while True:
            if not self._open:
                self._opened.clear()
                await self._opened.wait()
                away_since_s = None  # the engine was not asked while there was no query
            wait_s = self._retry_s if self._orphaned() else _POLL_S
            try:
                box_id, deltas = await _ask(
                    self._engine,
                    "poll",
                    self._client_id,
                    wait_s,
                    self._box_id,
                    self._num_received,
                    timeout_s=wait_s + _ASK_TIMEOUT_S,
                )
            except _AWAY as error:
                if away_since_s is None:
                    _log.warning("the engine is away, its queries wait for its successor: %s", type(error).__name__)
                    away_since_s = self._clock()
                if self._clock() - away_since_s > self._give_up_s:
                    self._fail_all(EngineUnavailableError("the engine did not come back in time; try again later"))
                await asyncio.sleep(self._retry_s)
            except Exception as error:
                _log.error("the engine cannot serve: %s", error)
                self._fail_all(error)
                await asyncio.sleep(self._retry_s)
            else:
                away_since_s = None
                self._take(box_id, deltas)
                await asyncio.gather(*map(self._submit_again, self._orphaned()))

    def _take(self, box_id: str, deltas: list[TokenDelta]) -> None:
        """Hand deltas to their queries' readers."""
        if box_id != self._box_id:
            self._box_id, self._num_received = box_id, 0
        self._num_received += len(deltas)
        for delta in deltas:
            if query := self._open.get(delta.request_id):
                query.take(delta)

    def _orphaned(self) -> list[_OpenQuery]:
        """Open queries whose mailbox is gone, because the engine restarted."""
        return [
            query
            for query in self._open.values()
            if query.box_id != self._box_id and not query.is_submitting and not query.is_finished
        ]

    async def _submit_again(self, query: _OpenQuery) -> None:
        """Resume a query on a restarted engine; while its queue is full, the poller tries again."""
        try:
            query.box_id = await _ask(self._engine, "submit", self._client_id, query.resumed())
        except (*_AWAY, QueueFullError) as error:
            _log.debug("not resumed yet: %s", error)
        except Exception as error:
            _log.exception("a query cannot go on")
            self._fail(query, EngineUnavailableError(f"the engine was restarted, and refuses the query: {error}"))

    def _fail_all(self, error: Exception) -> None:
        for query in list(self._open.values()):
            if not query.is_submitting:
                self._fail(query, error)

    def _fail(self, query: _OpenQuery, error: Exception) -> None:
        self._open.pop(query.request.request_id, None)
        query.deltas.put_nowait(error)

    def _cancel(self, request_id: str) -> None:
        """Have the engine stop a query. Nobody waits for it: the event loop may be about to close."""
        with contextlib.suppress(Exception):  # a dead engine has no query to cancel
            self._engine.call("cancel", request_id)


async def _ask(actor: ActorHandle, method: str, *args: Any, timeout_s: float | None = _ASK_TIMEOUT_S) -> Any:
    """Call an actor. Raises what its method raises, ActorAwayError, or TimeoutError."""
    async with asyncio.timeout(timeout_s):
        return await asyncio.wrap_future(actor.call(method, *args))


async def require(actor: ActorHandle, method: str, *args: Any) -> Any:
    """Call an actor whose answer is required: EngineUnavailableError if it cannot be reached."""
    try:
        return await _ask(actor, method, *args)
    except _AWAY as error:
        raise EngineUnavailableError("the engine is restarting; try again shortly") from error


async def _or_none(answer: Awaitable[T]) -> T | None:
    """The answer, or None if the call fails: a status page shows what is available."""
    try:
        return await answer
    except Exception as error:
        _log.debug("no answer: %s", error)
        return None


async def _untrained() -> TrainerStatus:
    return TrainerStatus(state="off", message="trainer.enabled or outcomes.enabled is false")
