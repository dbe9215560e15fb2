"""An `ActorHandle` over a Ray actor handle."""

from __future__ import annotations

from concurrent.futures import Future
from functools import partial
from typing import Any

import ray.exceptions

from actors.calls.handle import ActorAwayError


class RayHandle:
    """Calls an actor of the Ray instance that this process is connected to.

    Args:
        actor: as returned by `ray.get_actor`.
    """

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def call(self, method: str, *args: Any) -> Future[Any]:
        """Call a method (see `ActorHandle`)."""
        answer: Future[Any] = Future()
        getattr(self._actor, method).remote(*args).future().add_done_callback(partial(_settle, answer))
        return answer


def _settle(answer: Future[Any], done: Future[Any]) -> None:
    """Pass on a result. Ray wraps exceptions that a method raised; they are passed on unwrapped."""
    if not answer.set_running_or_notify_cancel():
        return  # the caller cancelled it
    error = done.exception()
    if error is None:
        answer.set_result(done.result())
    elif isinstance(error, ray.exceptions.RayTaskError):
        cause = error.cause
        answer.set_exception(cause if isinstance(cause, Exception) else RuntimeError(str(error)))
    elif isinstance(error, ray.exceptions.RayError):
        answer.set_exception(ActorAwayError(f"{type(error).__name__}: {error}"))
    else:
        answer.set_exception(error)
