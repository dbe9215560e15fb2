"""A client of all engines of the Ray Serve application, which the HTTP ingress uses.

consumes: one stream of deltas a query, from the engine that Ray Serve's router chose
waits for: deltas; an engine sends an empty list every few seconds if there are none
is unblocked by: a delta, the death of the engine, its silence
on failure: an engine that dies, hangs or is ended while it drains: the query is submitted to another one with what was
    already delivered (`resume_ids`, `resume_chars`), so its reader sees a pause; if no engine answers in time, an
    EngineUnavailableError
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any, NoReturn

import msgspec
import ray.exceptions
from ray.serve.exceptions import RayServeException

from actors.calls.by_serve import DISTILLER, ENGINE, SUPERVISOR, deployment_handle
from actors.cluster.cluster import trains
from actors.serve.engine import FullEngineError
from actors.serve.handle import EnginesHandle, ServeHandle
from actors.serve.prefixes import block_hashes
from actors.serve.router import Tries
from actors.service.client import RayEngineClient, require
from actors.service.delivered import Delivered
from osd.config.settings import Config
from osd.records.errors import EngineUnavailableError, QueueFullError
from osd.records.query import Request, TokenDelta

_log = logging.getLogger(__name__)
_SILENCE_S = 20.0
_AVOID_S = 60.0
"""An engine that died or hung is given no query for so long if there is another; Serve takes a while to notice."""
_AWAY = (ray.exceptions.RayError, RayServeException, EngineUnavailableError, TimeoutError)


class ServeEngineClient(RayEngineClient):
    """Implements `serving.engine_client.EngineClient` over Serve handles of the application's deployments.

    Args:
        engines: of the deployment of `EngineReplica`s.
        distiller: of that of the distiller; None if training is off.
        supervisor: of that of the supervisor.
    """

    def __init__(self, engines: Any, distiller: Any | None, supervisor: Any) -> None:
        super().__init__(
            EnginesHandle(engines), ServeHandle(distiller) if distiller is not None else None, ServeHandle(supervisor)
        )
        self._pool = EnginePool(engines)

    def generate(self, request: Request) -> AsyncGenerator[TokenDelta, None]:
        """Stream one query's answer."""
        return self._pool.generate(request)

    async def open_session(self, digest: str) -> None:
        """Open a session of the admin page (see `serving.admin.sign_in.Sessions`)."""
        await require(self._supervisor, "open_session", digest)

    async def has_session(self, digest: str) -> bool:
        """Whether it is open and has not expired."""
        return bool(await require(self._supervisor, "has_session", digest))

    async def close_session(self, digest: str) -> None:
        """End a session."""
        await require(self._supervisor, "close_session", digest)


def client_of_replica(config: Config) -> ServeEngineClient:
    """The client within a replica of the application."""
    distiller = deployment_handle(DISTILLER) if trains(config) else None
    return ServeEngineClient(deployment_handle(ENGINE), distiller, deployment_handle(SUPERVISOR))


class EnginePool:
    """Answers queries by whichever engine is best for each.

    Args:
        engines: a Serve handle of the deployment whose replicas are `EngineReplica`s.
        give_up_s: how long a query waits for an engine.
        silence_s: an engine whose stream says nothing for so long counts as dead.
        retry_s: pause before a query looks for an engine again.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        engines: Any,
        *,
        give_up_s: float = 180.0,
        silence_s: float = _SILENCE_S,
        retry_s: float = 0.25,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._streams = engines.options(stream=True)
        self._give_up_s, self._silence_s, self._retry_s, self._clock = give_up_s, silence_s, retry_s, clock
        self._away_s: dict[str, float] = {}
        """Engine to when it died or hung, of the last `_AVOID_S`."""

    async def generate(self, request: Request) -> AsyncGenerator[TokenDelta, None]:
        """Stream one query's answer (see `serving.engine_client.EngineClient`)."""
        query, prefix = Delivered(request), block_hashes(request.prompt_ids, request.cache_salt)
        tries = Tries()
        attempt, away_since_s = 0, self._clock()
        while not query.is_finished:
            tries.silent, tries.last = self._silent(), ""
            try:
                async with aclosing(self._attempt(query, prefix, tries, attempt)) as deltas:
                    async for delta in deltas:
                        away_since_s = self._clock()
                        query.take(delta)
                        yield delta
            except FullEngineError as error:
                if error.engine_id not in tries.avoid:
                    tries.avoid.append(error.engine_id)
                    continue
                if attempt == 0:
                    raise QueueFullError(str(error)) from None
                tries.avoid.clear()  # a query in progress waits until an engine has room
            except _AWAY as error:
                _log.warning("an engine is away, its query goes on elsewhere: %s", type(error).__name__)
                attempt += 1
                if tries.last:
                    self._away_s[tries.last] = self._clock()
            if not query.is_finished:
                if self._clock() - away_since_s > self._give_up_s:
                    raise EngineUnavailableError("no engine answered in time; try again later")
                await asyncio.sleep(self._retry_s)

    def _silent(self) -> frozenset[str]:
        """Engines that died or hung lately."""
        now_s = self._clock()
        self._away_s = {engine: at_s for engine, at_s in self._away_s.items() if now_s - at_s < _AVOID_S}
        return frozenset(self._away_s)

    async def _attempt(
        self, query: Delivered, prefix: tuple[int, ...], tries: Tries, number: int
    ) -> AsyncGenerator[TokenDelta, None]:
        """Have one engine continue a query. Raises FullEngineError, one of `_AWAY`, or what the engine raises."""
        request, own_id = query.resumed(), query.request.request_id
        if number:  # an engine that only seemed dead may hold the query under its first name
            request = replace(request, request_id=f"{own_id}.{number}")
        stream = self._streams.generate.remote(request, prefix=prefix, tries=tries)
        is_finished = False
        try:
            while True:
                async with asyncio.timeout(self._silence_s):
                    batch = await anext(stream, None)
                if batch is None:
                    raise EngineUnavailableError("the engine ended the stream early")
                for delta in batch:
                    is_finished = delta.finish_reason is not None
                    yield msgspec.structs.replace(delta, request_id=own_id) if number else delta
                if is_finished:
                    return
        except ray.exceptions.RayTaskError as error:
            _raise_cause(error)
        finally:
            if not is_finished:
                stream.cancel()


def _raise_cause(error: ray.exceptions.RayTaskError) -> NoReturn:
    """Raise what the engine raised."""
    cause = error.cause
    raise cause if isinstance(cause, Exception) else error
