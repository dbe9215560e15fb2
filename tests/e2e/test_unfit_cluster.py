"""A cluster that cannot run what is configured is refused by `osd serve` before anything is deployed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

pytest.importorskip("ray.serve", reason="not installed (osd[serve])", exc_type=ImportError)

from benchmarks.fleet.cluster import ServeCluster
from benchmarks.fleet.redis_server import RedisServer
from tests.kit.waiting import wait_for

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(280)]
_NO_STREAM = {"outcomes": {"enabled": False}}
_REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({}, "outcomes.redis_url is empty"),
    ({**_NO_STREAM, "target": {"device": "cuda"}}, "target.device is 'cuda', and no node of the cluster has a GPU"),
    ({**_NO_STREAM, "cluster": {"engine_num_cpus": 9}}, "no node of the cluster has the 9 CPU"),
    ({**_NO_STREAM, "cluster": {"engine_resources": {"fast": 1}}}, "no node of the cluster has the 1 CPU and 1 fast"),
    (
        {**_NO_STREAM, "store": {"url": "memory://osd"}},
        "store.url is 'memory://osd', which every process has for itself",
    ),
    ({**_NO_STREAM, "cluster": {"namespace": "osd"}}, "setting 'cluster.namespace' has no effect under Ray Serve"),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, unused_tcp_port_factory: Any) -> Iterator[ServeCluster]:
    """Two nodes, neither with a GPU."""
    with ServeCluster(tmp_path_factory.mktemp("home"), unused_tcp_port_factory(), head={}, nodes=[{}]) as cluster:
        yield cluster


@pytest.mark.parametrize(("sections", "says"), _REFUSALS)
def test_what_the_nodes_cannot_do_is_refused(
    cluster: ServeCluster, tmp_path: Path, sections: dict[str, Any], says: str
) -> None:
    with pytest.raises(RuntimeError, match=says):
        cluster.do("deploy", args={"state_dir": str(tmp_path), **sections})
    assert cluster.do("replicas", deployment="engine") == []


def _evicts(server: redis.Redis) -> None:
    server.config_set("maxmemory-policy", "allkeys-lru")


def _is_anothers(server: redis.Redis) -> None:
    server.set("osd:outcomes:owner", "ab12 Ray cluster 10.0.0.9:6379", ex=60)


@pytest.fixture(scope="module")
def other_redis(tmp_path_factory: pytest.TempPathFactory, unused_tcp_port_factory: Any) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis"), unused_tcp_port_factory()) as server:
        yield server


@pytest.mark.redis
@pytest.mark.parametrize(
    ("make", "says"),
    [
        (_evicts, "Redis may evict any key .*maxmemory-policy allkeys-lru.*; set maxmemory-policy noeviction"),
        (_is_anothers, "the stream 'osd:outcomes' belongs to another osd service .Ray cluster 10.0.0.9:6379.; give"),
    ],
)
def test_a_redis_that_would_lose_the_stream_or_has_another_services_is_refused(
    cluster: ServeCluster, other_redis: RedisServer, tmp_path: Path, make: Callable[[redis.Redis], None], says: str
) -> None:
    with redis.Redis.from_url(other_redis.url) as server:
        wait_for(lambda: _answers(server), "Redis to answer")
        make(server)
        try:
            with pytest.raises(RuntimeError, match=f"RedisRefusedError: {says}"):
                cluster.do("deploy", args={"state_dir": str(tmp_path), "outcomes": {"redis_url": other_redis.url}})
        finally:
            server.config_set("maxmemory-policy", "noeviction")
            server.delete("osd:outcomes:owner")
    assert cluster.do("replicas", deployment="supervisor") == []


def _answers(server: redis.Redis) -> bool:
    try:
        return bool(server.ping())
    except redis.ConnectionError:
        return False
