"""Starts Ray, and the actors with their restart policies, in the driver's process."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import ray
import ray.exceptions

from actors.calls.handle import ActorHandle
from actors.calls.link import Order
from actors.calls.names import ActorNames
from actors.calls.ray_handle import RayHandle
from actors.distiller.distiller import DistillerActor
from actors.engine.engine import EngineActor
from actors.supervisor.supervisor import SupervisorActor
from osd.config.settings import Config
from osd.records.errors import OsdError, reason
from osd.records.status import EngineStatus

_log = logging.getLogger(__name__)
_CLOSE_S = 5.0
_PROGRESS_S = 0.2
_RESTARTING = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": 0}


def start_ray(config: Config, stack: ExitStack) -> None:
    """Start a local Ray. Closing `stack` stops it.

    Raises:
        OsdError: Ray does not start.
    """
    try:
        ray.init(
            address="local",
            namespace=config.cluster.namespace,
            include_dashboard=False,
            num_cpus=1,
            object_store_memory=config.cluster.object_store_bytes,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except Exception as error:  # where Ray's own processes are slow to start, it raises nothing more special
        mend = "check free memory and disk space, and try again when the machine is less busy"
        raise OsdError(f"cannot start Ray: {reason(error)}; {mend}") from error
    stack.callback(ray.shutdown)


def start_actors(
    order: Order, stack: ExitStack, on_progress: Callable[[str], None]
) -> tuple[dict[str, ActorHandle], EngineStatus]:
    """Create the actors and wait until the engine serves. Closing `stack` closes and ends them.

    Actors find one another by name, since a handle in an actor's constructor arguments does not survive a restart.

    Args:
        order: what to start.
        stack: closes the actors.
        on_progress: called with what the engine does while it loads.

    Returns:
        (the actors by their names in reports, the engine's first status).

    Raises:
        OsdError: the engine cannot serve.
    """
    config, names = order.config, ActorNames.unique()
    actors = {"engine": _create(EngineActor, names.engine, stack, config, order.redis_url, names.supervisor)}
    status = _wait_for(actors["engine"], on_progress)
    watched = {"engine": names.engine}
    if config.trainer.enabled and config.outcomes.enabled:
        actors["distiller"] = _create(DistillerActor, names.distiller, stack, config, order.redis_url, names)
        watched["distiller"] = names.distiller
    redis_url = order.redis_url if config.outcomes.enabled else ""
    actors["supervisor"] = _create(
        SupervisorActor,
        names.supervisor,
        stack,
        watched,
        order.training_paused,
        config,
        redis_url,
    )
    return {name: RayHandle(actor) for name, actor in actors.items()}, status


def _create(actor_class: type, name: str, stack: ExitStack, *args: Any) -> Any:
    handle = ray.remote(**_RESTARTING)(actor_class).options(name=name).remote(*args)
    stack.callback(ray.kill, handle)
    stack.callback(_close, handle)
    return handle


def _close(actor: Any) -> None:
    """Let an actor save its state before it is killed, for at most a few seconds."""
    try:
        ray.get(actor.close.remote(), timeout=_CLOSE_S)
    except Exception as error:  # dead, restarting or hanging
        _log.debug("an actor did not close: %s", error)


def _wait_for(engine: Any, on_progress: Callable[[str], None]) -> EngineStatus:
    """The engine's first status, once it serves; raises if it cannot."""
    ready, num_told = engine.ready.remote(), 0
    try:
        while ray.wait([ready], timeout=_PROGRESS_S) == ([], [ready]):
            lines: list[str] = ray.get(engine.progress.remote())
            for line in lines[num_told:]:
                on_progress(line)
            num_told = len(lines)
        ray.get(ready)
        status: EngineStatus = ray.get(engine.status.remote())
        return status
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, OsdError):
            raise error.cause from None
        raise OsdError(f"the engine cannot start: {error.cause}") from error
    except ray.exceptions.RayActorError as error:
        raise OsdError(f"the engine's process died while loading: {error}; is there enough memory?") from error
