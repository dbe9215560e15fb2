"""An `ActorHandle` over a Ray Serve deployment handle."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from typing import Any

import ray.exceptions
from ray.serve.exceptions import RayServeException

from actors.handle import ActorAwayError


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
        answer: Future[Any] = Future()
        task = asyncio.create_task(_settle(answer, getattr(self._deployment, method).remote(*args)))
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)
        return answer


async def _settle(answer: Future[Any], response: Any) -> None:
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
