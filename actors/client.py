"""What serving knows of the actors: an asynchronous client of the engine that hides Ray.

consumes: the engine actor's long poll, one outstanding at a time
waits for: deltas of any open query; while none is open, for one to be opened
is unblocked by: a delta, `generate`, `close`
on failure: when the engine dies, open queries are submitted again to its successor with what was already delivered
    (`resume_ids`, `resume_chars`), so their readers see a pause; when none comes back in time, they get an
    EngineUnavailableError
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import psutil
import ray.exceptions

from osd.types import (
    AcceptancePoint,
    EngineUnavailableError,
    Event,
    QueueFullError,
    Request,
    ServiceStatus,
    TokenDelta,
    WeightManifest,
)

T = TypeVar("T")
_log = logging.getLogger(__name__)
_POLL_S = 10.0
_ASK_TIMEOUT_S = 15.0
_RETRY_S = 0.25


@dataclass(slots=True, eq=False)
class _OpenQuery:
    """One query in flight, with what its reader was given."""

    request: Request
    deltas: asyncio.Queue[TokenDelta | Exception] = field(default_factory=asyncio.Queue)
    output_ids: list[int] = field(default_factory=list)
    num_chars: int = 0
    engine: int | None = None
    """Process id of the engine that has it."""

    def take(self, delta: TokenDelta) -> None:
        self.output_ids.extend(delta.token_ids)
        self.num_chars += len(delta.text)
        self.deltas.put_nowait(delta)

    def resumed(self) -> Request:
        return replace(self.request, resume_ids=tuple(self.output_ids), resume_chars=self.num_chars)


class RayEngineClient:
    """Implements `serving.engine_client.EngineClient` over actor handles.

    Args:
        engine: the engine actor.
        distiller: the distiller actor; None when nothing is trained.
        supervisor: the supervisor actor.
        give_up_s: how long open queries wait for a dead engine's successor.
        processes: further processes whose resident bytes `status` reports, by name.
    """

    def __init__(
        self,
        engine: Any,
        distiller: Any | None,
        supervisor: Any,
        *,
        give_up_s: float = 180.0,
        processes: Mapping[str, Callable[[], int | None]] | None = None,
    ) -> None:
        self._engine, self._distiller, self._supervisor = engine, distiller, supervisor
        self._give_up_s = give_up_s
        self._processes = dict(processes or {})
        self._client_id = uuid.uuid4().hex
        self._open: dict[str, _OpenQuery] = {}
        self._opened = asyncio.Event()
        self._submitting = asyncio.Lock()
        self._poller: asyncio.Task[None] | None = None
        self._cancels: set[asyncio.Task[None]] = set()

    async def generate(self, request: Request) -> AsyncGenerator[TokenDelta, None]:
        """Stream one query's answer (see `serving.engine_client`)."""
        if self._poller is None:
            self._poller = asyncio.create_task(self._poll_forever())
        query = _OpenQuery(request)
        finished = False
        try:
            await self._submit(query)
            while not finished:
                delta = await query.deltas.get()
                if isinstance(delta, Exception):
                    raise delta
                finished = delta.finish_reason is not None
                yield delta
        finally:
            self._open.pop(request.request_id, None)
            if not finished and query.engine is not None:
                task = asyncio.create_task(self._cancel(request.request_id))
                self._cancels.add(task)
                task.add_done_callback(self._cancels.discard)

    async def status(self) -> ServiceStatus:
        """A snapshot; parts that are away are None."""
        engine, trainer, restarts, processes = await asyncio.gather(
            _or_none(_ask(self._engine.status.remote)),
            _or_none(_ask(self._distiller.status.remote)) if self._distiller else _nothing(),
            _or_none(_ask(self._supervisor.restarts.remote)),
            _or_none(_ask(self._supervisor.processes.remote)),
        )
        sizes = {"server": psutil.Process().memory_info().rss, **(processes or {})}
        for name, find_pid in self._processes.items():
            pid = find_pid()
            if pid is not None and psutil.pid_exists(pid):
                sizes[name] = psutil.Process(pid).memory_info().rss
        return ServiceStatus(
            ready=engine is not None, engine=engine, trainer=trainer, restarts=restarts or {}, processes=sizes
        )

    async def events(self, limit: int) -> list[Event]:
        """The newest events of all actors, oldest first."""
        actors = [actor for actor in (self._engine, self._distiller, self._supervisor) if actor is not None]
        parts = await asyncio.gather(*(_or_none(_ask(actor.events.remote, limit)) for actor in actors))
        merged = sorted((event for part in parts for event in part or []), key=lambda event: event.at_s)
        return merged[-limit:]

    async def history(self, limit: int) -> list[AcceptancePoint]:
        """The newest finished queries, oldest first."""
        points: list[AcceptancePoint] = await self._ask_engine(self._engine.history.remote, limit)
        return points

    async def versions(self) -> list[WeightManifest]:
        """Every drafter version, oldest first."""
        versions: list[WeightManifest] = await self._ask_engine(self._engine.versions.remote)
        return versions

    async def pause_training(self) -> None:
        """Stop training until resumed; also across a restart of the distiller."""
        await _ask(self._supervisor.set_training_paused.remote, True)

    async def resume_training(self) -> None:
        """Train again."""
        await _ask(self._supervisor.set_training_paused.remote, False)

    async def roll_back(self, to: int | None, reason: str) -> WeightManifest:
        """Serve an older drafter version again."""
        restored: WeightManifest = await self._ask_engine(self._engine.roll_back.remote, to, reason)
        return restored

    async def close(self) -> None:
        """Stop polling."""
        if self._poller is not None:
            self._poller.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._poller

    async def _submit(self, query: _OpenQuery) -> None:
        """Hand a new query to the engine; if that dies at this moment, recovery submits it to the next one."""
        async with self._submitting:
            self._open[query.request.request_id] = query
            try:
                query.engine = await _ask(self._engine.submit.remote, self._client_id, query.request, timeout_s=None)
            except ray.exceptions.RayError as error:
                _log.warning("the engine is away, a query waits for it: %s", type(error).__name__)
            self._opened.set()

    async def _poll_forever(self) -> None:
        while True:
            if not self._open:
                self._opened.clear()
                await self._opened.wait()
            try:
                engine, deltas = await _ask(self._engine.poll.remote, self._client_id, _POLL_S, timeout_s=2 * _POLL_S)
            except Exception as error:
                _log.warning("the engine does not answer: %s", type(error).__name__)
                await self._recover()
                continue
            for delta in deltas:
                if query := self._open.get(delta.request_id):
                    query.take(delta)
            if any(query.engine != engine for query in self._open.values()):
                await self._recover()

    async def _recover(self) -> None:
        """Wait for the engine's successor, and submit to it what the dead one had."""
        deadline_s = time.monotonic() + self._give_up_s
        while time.monotonic() < deadline_s:
            try:
                engine = await _ask(self._engine.ready.remote, timeout_s=max(deadline_s - time.monotonic(), 1.0))
                async with self._submitting:
                    for query in [query for query in self._open.values() if query.engine != engine]:
                        query.engine = await _ask(self._engine.submit.remote, self._client_id, query.resumed())
                return
            except (ray.exceptions.RayError, TimeoutError, QueueFullError):
                await asyncio.sleep(_RETRY_S)
            except Exception as error:  # the successor cannot be loaded, or refuses what its predecessor took
                _log.exception("the engine came back but cannot go on")
                self._fail_all(EngineUnavailableError(f"the engine cannot go on: {error}"))
                return
        self._fail_all(EngineUnavailableError("the engine did not come back in time; try again later"))

    def _fail_all(self, error: Exception) -> None:
        for query in self._open.values():
            query.deltas.put_nowait(error)
        self._open.clear()

    async def _cancel(self, request_id: str) -> None:
        with contextlib.suppress(Exception):  # a dead engine holds no queries
            await _ask(self._engine.cancel.remote, request_id)

    async def _ask_engine(self, method: Callable[..., Any], *args: Any) -> Any:
        try:
            return await _ask(method, *args)
        except (ray.exceptions.RayError, TimeoutError) as error:
            raise EngineUnavailableError("the engine is restarting; try again shortly") from error


async def _ask(method: Callable[..., Any], *args: Any, timeout_s: float | None = _ASK_TIMEOUT_S) -> Any:
    """Call an actor. An error of ours arrives as itself, without Ray's wrapping."""
    try:
        return await asyncio.wait_for(asyncio.wrap_future(method(*args).future()), timeout_s)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, Exception):
            raise error.cause from None
        raise


async def _or_none(answer: Awaitable[T]) -> T | None:
    """None where an actor is away: a status page shows what there is."""
    try:
        return await answer
    except Exception as error:
        _log.debug("no answer: %s", error)
        return None


async def _nothing() -> None:
    return None
