"""One engine as a replica of the Ray Serve deployment `engine`: a thin shell around `EngineActor`."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial
from typing import Any

from ray import serve

from actors.calls.by_serve import ENGINE, SUPERVISOR, ask_by_serve
from actors.cluster.replica_logs import join_cluster_logs
from actors.engine.engine import EngineActor
from actors.serve.prefixes import HeldPrefixes, block_hashes
from actors.serve.router import Tries
from osd.config.settings import Config
from osd.io.guards.store_health import check_store
from osd.records.errors import EngineUnavailableError, QueueFullError
from osd.records.query import Request, TokenDelta
from osd.records.status import EngineStatus

_FAREWELL_S = 2.0
_BEAT_S = 5.0
"""Interval at which a stream without new tokens sends an empty list, to show its reader that the engine is alive."""


class FullEngineError(QueueFullError):
    """One engine's queue is full; another may have room."""

    def __init__(self, message: str, engine_id: str) -> None:
        super().__init__(message, engine_id)
        self.engine_id = engine_id

    def __str__(self) -> str:
        return str(self.args[0])


class EngineReplica(EngineActor):
    """Serves queries. Ray Serve sends it none before the engine is loaded, nor once it is being drained.

    Args:
        config: the whole configuration.
        redis_url: the Redis of the outcome stream.

    Raises:
        OsdError: the engine cannot be loaded, or drafter versions cannot be kept in the store from its node.
    """

    def __init__(self, config: Config, redis_url: str) -> None:
        self._id: str = serve.get_replica_context().replica_id.unique_id
        join_cluster_logs(ENGINE, config)
        check_store(config)
        self._prefixes = HeldPrefixes(config.engine.max_slots)
        super().__init__(config_of_replica(config, self._id), redis_url, SUPERVISOR, ask=ask_by_serve)
        self._opening.result()

    async def generate(
        self, request: Request, *, prefix: tuple[int, ...] = (), tries: Tries | None = None
    ) -> AsyncIterator[list[TokenDelta]]:
        """Stream a query's answer. Closing the stream early cancels the query.

        Args:
            request: the query.
            prefix: `block_hashes` of its prompt, for the router and for what this engine says it holds.
            tries: for the router.

        Raises:
            FullEngineError: too many queries are waiting here.
            OsdError: any other that `Engine.submit` raises.
        """
        reader = uuid.uuid4().hex
        try:
            box_id = await self.submit(reader, request)
        except Exception as error:
            await self.leave(reader)
            if isinstance(error, QueueFullError):
                raise FullEngineError(str(error), self._id) from None
            raise
        output_ids: list[int] = list(request.resume_ids)
        num_received, is_finished = 0, False
        self._prefixes.add(prefix)
        try:
            while not is_finished:
                present_id, deltas = await self.poll(reader, _BEAT_S, box_id, num_received)
                if present_id != box_id:
                    raise EngineUnavailableError("the engine took the reader of an answer for gone")
                num_received += len(deltas)
                for delta in deltas:
                    output_ids.extend(delta.token_ids)
                    is_finished = delta.finish_reason is not None
                yield deltas
        finally:
            if is_finished:
                self._prefixes.add(block_hashes((*request.prompt_ids, *output_ids), request.cache_salt))
            else:
                await self.cancel(request.request_id)
            await self.leave(reader)

    async def status_as(self, *, tries: Tries | None = None) -> tuple[str, EngineStatus]:
        """This engine's id, as in `tries.avoid`, and its status.

        Args:
            tries: for the router: engines that were asked already.
        """
        return self._id, await self.status()

    def record_routing_stats(self) -> dict[str, Any]:
        """What routers know of this engine (Ray Serve calls this)."""
        return {"prefixes": self._prefixes.blocks(), "draining": self.orders.draining}

    async def check_health(self) -> None:
        """Raise unless the engine's thread takes commands between steps (Ray Serve calls this, and bounds its time)."""
        await self.status()

    async def __del__(self) -> None:
        """Write what is recorded (Ray Serve calls this once the queries have ended, or `cluster.drain_s` is over)."""
        if hasattr(self, "_opening"):
            await self.close()
            with suppress(Exception):  # without a supervisor, nobody misses this engine
                farewell = partial(ask_by_serve, SUPERVISOR, "farewell", self._config.engine.id)
                await asyncio.to_thread(farewell, timeout_s=_FAREWELL_S)


def config_of_replica(config: Config, replica_id: str) -> Config:
    """The configuration of one engine: a name of its own, and as many threads as Ray reserved whole CPUs for it."""
    threads = config.target.threads or int(config.cluster.engine_num_cpus)
    return config.model_copy(
        update={
            "engine": config.engine.model_copy(update={"id": f"{config.engine.id}-{replica_id}"[:64]}),
            "target": config.target.model_copy(update={"threads": threads}),
        }
    )
