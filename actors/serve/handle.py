"""An `ActorHandle` over a Ray Serve deployment handle."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from concurrent.futures import Future
from typing import Any

import ray.exceptions
from ray.serve.exceptions import RayServeException

from actors.calls.handle import ActorAwayError
from actors.serve.router import Tries
from osd.fleet.whole_status import whole_status
from osd.records.status import EngineStatus

_STATUS_S = 2.0
"""An engine that does not tell its status for so long is left out."""


class ServeHandle:
    """Calls one replica of a deployment, which Serve chooses. Used on an event loop.

    Args:
        deployment: a Serve handle.
    """

    def __init__(self, deployment: Any) -> None:
        self._deployment = deployment
        self._calls: set[asyncio.Task[None]] = set()

    def call(self, method: str, *args: Any) -> Future[Any]:
        """Call a method (see `ActorHandle`)."""
        return self._soon(getattr(self._deployment, method).remote(*args))

    def _soon(self, response: Awaitable[Any]) -> Future[Any]:
        answer: Future[Any] = Future()
        task = asyncio.create_task(_settle(answer, response))
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)
        return answer


class EnginesHandle(ServeHandle):
    """Calls one engine, which Serve chooses; asked for its status, all of them."""

    def call(self, method: str, *args: Any) -> Future[Any]:
        """Call a method (see `ActorHandle`)."""
        return self._soon(self._whole_status()) if method == "status" else super().call(method, *args)

    async def _whole_status(self) -> EngineStatus:
        """The sum over the engines that answer.

        A handle cannot name a replica, so each that has answered is asked to be left out of the next call.
        """
        statuses: dict[str, EngineStatus] = {}
        while True:
            try:
                async with asyncio.timeout(_STATUS_S):
                    tries = Tries(avoid=list(statuses))
                    engine_id, status = await self._deployment.status_as.remote(tries=tries)
            except (ray.exceptions.RayError, RayServeException, TimeoutError):
                if not statuses:
                    raise
                return whole_status(list(statuses.values()))
            if engine_id in statuses:
                return whole_status(list(statuses.values()))
            statuses[engine_id] = status


async def _settle(answer: Future[Any], response: Awaitable[Any]) -> None:
    """Pass on a result. Ray wraps exceptions that a method raised; they are passed on unwrapped."""
    result, error = None, None
    try:
        result = await response
    except ray.exceptions.RayTaskError as failed:
        error = failed.cause if isinstance(failed.cause, Exception) else RuntimeError(str(failed))
    except (ray.exceptions.RayError, RayServeException) as away:
        error = ActorAwayError(f"{type(away).__name__}: {away}")
    except Exception as other:  # noqa: BLE001 - raised again to the caller
        error = other
    if not answer.set_running_or_notify_cancel():
        return  # the caller cancelled it
    if error is not None:
        answer.set_exception(error)
    else:
        answer.set_result(result)
