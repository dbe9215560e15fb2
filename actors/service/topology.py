"""Starts and stops the service: Redis, the Ray driver with the actors, and the client that calls them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Self

from actors.calls.handle import ActorAwayError, ActorHandle
from actors.driver.driver_keeper import DriverKeeper, Progress
from actors.service.client import RayEngineClient
from actors.supervisor.stream_keeper import claim_stream
from osd.config.paths import redis_dir
from osd.config.settings import Config
from osd.io.embedded_redis import EmbeddedRedis
from osd.io.outcome_stream import RedisOutcomeStream
from osd.loading.resolve import ResolvedTarget, configured_target
from osd.records.errors import OsdError

_log = logging.getLogger(__name__)
_REDIS_CHECK_S = 1.0
_NEWS_S = 2.0
_REDIS_SLACK_BYTES = 64 << 20
"""Memory that Redis needs beyond the stream: its own structures, and copies while it rewrites the append-only file."""


@dataclass(slots=True)
class Topology:
    """The running service; close it, or use it as a context manager."""

    config: Config
    resolved: ResolvedTarget
    drafter: str
    """Kind and version of the drafter at the start."""
    computes: str
    """See `EngineStatus`."""
    context_tokens: int
    """See `EngineStatus`."""
    context: str
    """See `EngineStatus`."""
    client: RayEngineClient
    driver: DriverKeeper
    redis: EmbeddedRedis | None
    _stack: ExitStack

    def close(self) -> None:
        """Stop the actors, Ray if osd started it, and the embedded Redis."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def start(
    config: Config,
    on_progress: Progress = lambda stage, share: None,
    *,
    resolved: ResolvedTarget | None = None,
    on_news: Callable[[str], None] = lambda line: None,
) -> Topology:
    """Start everything and wait until the engine serves. If a part fails, the parts before it are stopped.

    Args:
        config: the whole configuration.
        on_progress: called with (stage, share done).
        resolved: the target, if it was resolved already.
        on_news: called on another thread with later news: kernels are compiled, and take over.

    Raises:
        OsdError: one line that says what is wrong and what to do.
    """
    if config.cluster.address:
        raise OsdError("cluster.address is set: a cluster is deployed to with `osd serve --ray-address`; unset it here")
    with ExitStack() as stack:
        resolved = resolved or configured_target(config, on_progress)
        on_progress("starting Redis", 0.2)
        redis = _start_redis(config, stack)
        redis_url = redis.url if redis else config.outcomes.redis_url
        driver = DriverKeeper(config, redis_url)
        stack.callback(driver.close)
        told: set[str] = set()

        def progress(stage: str, share: float) -> None:
            told.add(stage)
            on_progress(stage, share)

        status = driver.start(progress)
        _relay(driver.handle("engine"), told, on_news, stack)
        on_progress("ready", 1.0)
        processes = {"driver": lambda: driver.pid} | ({"redis": lambda: redis.pid} if redis else {})
        trains = config.trainer.enabled and config.outcomes.enabled
        client = RayEngineClient(
            driver.handle("engine"),
            driver.handle("distiller") if trains else None,
            driver.handle("supervisor"),
            driver=driver,
            processes=processes,
        )
        drafter = f"{status.drafter_kind} v{status.drafter_version}"
        return Topology(
            config,
            resolved,
            drafter,
            status.computes,
            status.context_tokens,
            status.context,
            client,
            driver,
            redis,
            stack.pop_all(),
        )


def _relay(engine: ActorHandle, told: set[str], on_news: Callable[[str], None], stack: ExitStack) -> None:
    """Pass on the engine's later news, except for lines in `told`.

    consumes: the lines of the engine actor's `progress`
    waits for: the interval between two polls
    is unblocked by: closing `stack`
    on failure: an engine that does not answer is asked again
    """
    stopping = threading.Event()

    def look() -> None:
        while not stopping.wait(_NEWS_S):
            answer = engine.call("progress")
            try:
                lines: list[str] = answer.result(_NEWS_S)
            except (ActorAwayError, TimeoutError) as error:
                answer.cancel()
                _log.debug("the engine does not say what it does: %s", error)
                continue
            for line in lines:
                if line not in told:
                    told.add(line)
                    on_news(line)

    thread = threading.Thread(target=look, name="osd-news", daemon=True)
    thread.start()
    stack.callback(thread.join)
    stack.callback(stopping.set)


def _start_redis(config: Config, stack: ExitStack) -> EmbeddedRedis | None:
    """Start the embedded server if no URL is configured; a configured one must answer now."""
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
        for warning in claim_stream(config, outcomes.redis_url):
            _log.warning("%s", warning)
        return None
    redis = EmbeddedRedis(
        redis_dir(config.state_dir),
        max_memory_bytes=(outcomes.max_bytes + config.monitor.history_bytes) * 3 // 2 + _REDIS_SLACK_BYTES,
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
    """Restart the embedded server whenever it dies; meanwhile outcomes are spilled to a file."""
    while not stopping.wait(_REDIS_CHECK_S):
        try:
            if redis.ensure_running():
                _log.warning("the embedded redis-server had stopped, and was started again")
        except OsdError as error:
            _log.warning("the embedded redis-server is down and does not start: %s", error)
