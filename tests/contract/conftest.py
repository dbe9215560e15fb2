"""A real redis-server of our own for each test that asks; never one that somebody else runs."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import redis

from osd.io.embedded_redis import EmbeddedRedis
from osd.io.outcome_stream import RedisOutcomeStream

PATIENCE_S = 20.0


class RedisServer(EmbeddedRedis):
    """With handles for what goes wrong with a server."""

    def __init__(self, folder: Path, *, max_memory_bytes: int = 64 << 20) -> None:
        super().__init__(folder, max_memory_bytes=max_memory_bytes)
        self.folder = folder
        self.client = redis.Redis.from_url(self.url)

    def process(self) -> psutil.Process:
        return psutil.Process(int((self.folder / "redis.pid").read_text()))

    def kill(self) -> None:
        """As the kernel would for want of memory."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(PATIENCE_S)

    def freeze(self) -> None:
        os.kill(self.process().pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.process().pid, signal.SIGCONT)


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path / "redis")
    server.start()
    yield server
    server.client.close()
    server.stop()


@pytest.fixture
def open_stream(redis_server: RedisServer) -> Iterator[Callable[..., RedisOutcomeStream]]:
    """Makes streams on the test's server that are closed after it."""
    streams = []

    def open_one(*, url: str = "", **options: object) -> RedisOutcomeStream:
        settings: dict[str, object] = {"max_entries": 1000, "max_bytes": 1 << 20, **options}
        stream = RedisOutcomeStream(url or redis_server.url, "outcomes", **settings)  # type: ignore[arg-type]
        streams.append(stream)
        return stream

    yield open_one
    for stream in streams:
        stream.close()
