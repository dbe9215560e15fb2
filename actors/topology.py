"""Bringing the service up and down: Ray, Redis, and the three actors with their restart policies."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Self

import ray
import ray.exceptions

from actors.client import RayEngineClient
from actors.distiller import DistillerActor
from actors.engine import EngineActor
from actors.names import ActorNames
from actors.supervisor import SupervisorActor
from osd.config import Config
from osd.io.embedded_redis import EmbeddedRedis
from osd.io.outcome_stream import RedisOutcomeStream
from osd.models.resolve import ResolvedTarget, resolve_target
from osd.reason import reason
from osd.store_paths import redis_dir
from osd.types import EngineStatus, OsdError

_log = logging.getLogger(__name__)
_REDIS_CHECK_S = 1.0
_REDIS_SLACK_BYTES = 64 << 20
"""Redis needs room beyond the stream: its own structures, and copies while the append-only file is rewritten."""
_CLOSE_S = 5.0
_RESTARTING = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": 0}
Progress = Callable[[str, float], None]


@dataclass(slots=True)
class Topology:
    """The running service, to be closed; also a context manager."""

    config: Config
    resolved: ResolvedTarget
    drafter: str
    """Kind and version that serve at the start."""
    client: RayEngineClient
    engine: Any
    distiller: Any | None
    supervisor: Any
    redis: EmbeddedRedis | None
    _stack: ExitStack

    def close(self) -> None:
        """Stop the actors, Ray if it is ours, and the embedded Redis."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def start(config: Config, on_progress: Progress = lambda stage, share: None) -> Topology:
    """Start everything and wait until the engine serves. What was started is stopped again when a later part fails.

    Args:
        config: everything.
        on_progress: told (stage, share done).

    Raises:
        OsdError: one line that says what is wrong and what to do.
    """
    with ExitStack() as stack:
        resolved = resolve_target(config.target.model, config.state_dir, on_progress)
        on_progress("starting Redis", 0.2)
        redis = _start_redis(config, stack)
        redis_url = redis.url if redis else config.outcomes.redis_url
        on_progress("starting Ray", 0.3)
        _start_ray(config, stack)
        on_progress("loading the target (on a CPU its loops are compiled, once a machine: a minute)", 0.5)
        # Actors find one another by name: handles among constructor arguments would not outlive a restart.
        names = ActorNames.unique()
        engine = _create(EngineActor, names.engine, stack, config, redis_url)
        status = _wait_for(engine)
        distiller = None
        watched = {"engine": names.engine}
        if config.trainer.enabled and config.outcomes.enabled:
            distiller = _create(DistillerActor, names.distiller, stack, config, redis_url, names)
            watched["distiller"] = names.distiller
        supervisor = _create(SupervisorActor, names.supervisor, stack, watched)
        on_progress("ready", 1.0)
        processes = {"redis": lambda: redis.pid} if redis else {}
        client = RayEngineClient(engine, distiller, supervisor, processes=processes)
        drafter = f"{status.drafter_kind} v{status.drafter_version}"
        return Topology(config, resolved, drafter, client, engine, distiller, supervisor, redis, stack.pop_all())


def _start_redis(config: Config, stack: ExitStack) -> EmbeddedRedis | None:
    """The embedded server unless a URL is given; that one must answer now."""
    outcomes = config.outcomes
    if not outcomes.enabled:
        return None
    if outcomes.redis_url:
        stream = RedisOutcomeStream(
            outcomes.redis_url, outcomes.stream, max_entries=outcomes.max_entries, max_bytes=outcomes.max_bytes
        )
        try:
            stream.check()
        finally:
            stream.close()
        return None
    redis = EmbeddedRedis(
        redis_dir(config.state_dir), max_memory_bytes=outcomes.max_bytes * 3 // 2 + _REDIS_SLACK_BYTES
    )
    stack.callback(redis.stop)
    redis.start()
    stopping = threading.Event()
    keeper = threading.Thread(target=_keep_running, args=(redis, stopping), name="osd-redis-keeper", daemon=True)
    keeper.start()
    stack.callback(keeper.join)
    stack.callback(stopping.set)
    return redis


def _keep_running(redis: EmbeddedRedis, stopping: threading.Event) -> None:
    """Start the embedded server again when it died; meanwhile outcomes spill to a file."""
    while not stopping.wait(_REDIS_CHECK_S):
        try:
            if redis.ensure_running():
                _log.warning("the embedded redis-server had stopped, and was started again")
        except OsdError as error:
            _log.warning("the embedded redis-server is down and does not start: %s", error)


def _start_ray(config: Config, stack: ExitStack) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's metrics agent and its idle workers would only cost memory: osd has its own metrics, and starts few actors.
    os.environ.setdefault("RAY_enable_metrics_collection", "0")
    # Ray gives its workers a low priority; the engine must have the ordinary one, or the trainer's would be no lower.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # Actors ask for no GPU of their own, since engine and trainer may share one; Ray would hide it from them.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # oneDNN keeps compiled products by shape, 1,024 of them: with prompts of every length, that alone is a gigabyte.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
    options: dict[str, Any] = {"namespace": config.cluster.namespace, "log_to_driver": False}
    if config.cluster.address:
        options["address"] = config.cluster.address
    else:
        options |= {
            "address": "local",
            "include_dashboard": False,
            "num_cpus": 1,
            "object_store_memory": config.cluster.object_store_bytes,
        }
    try:
        ray.init(logging_level=logging.ERROR, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise OsdError(
            f"cannot start or join Ray: {reason(error)}; check cluster.address and free disk space"
        ) from error
    stack.callback(ray.shutdown)


def _create(actor_class: type, name: str, stack: ExitStack, *args: Any) -> Any:
    handle = ray.remote(**_RESTARTING)(actor_class).options(name=name).remote(*args)
    stack.callback(ray.kill, handle)
    stack.callback(_close, handle)
    return handle


def _close(actor: Any) -> None:
    """Let an actor bring what it has to a safe place before it is killed; it gets a few seconds."""
    try:
        ray.get(actor.close.remote(), timeout=_CLOSE_S)
    except Exception as error:  # dead, restarting or stuck
        _log.debug("an actor did not close: %s", error)


def _wait_for(engine: Any) -> EngineStatus:
    """The engine's first status, as soon as it serves; or why it can't."""
    try:
        ray.get(engine.ready.remote())
        status: EngineStatus = ray.get(engine.status.remote())
        return status
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, OsdError):
            raise error.cause from None
        raise OsdError(f"the engine cannot start: {error.cause}") from error
    except ray.exceptions.RayActorError as error:
        raise OsdError(f"the engine's process died while loading: {error}; is there enough memory?") from error
