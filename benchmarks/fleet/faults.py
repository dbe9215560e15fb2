"""What may die in a cluster that serves, and what has to be there again afterwards."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from benchmarks.fleet.cluster import ServeCluster
from benchmarks.fleet.load import StreamingLoad
from benchmarks.fleet.redis_server import RedisServer

HEAD = {"resources": {"front": 1}}
SERVING_NODE, LEARNING_NODE = {"resources": {"serves": 1}}, {"resources": {"serves": 1, "learns": 1}}
NODES = [SERVING_NODE, LEARNING_NODE]
"""Two engines on two nodes; HTTP, the supervisor and Serve's controller on the head, the distiller on the last."""
PLACEMENT: dict[str, dict[str, float]] = {
    "engine_resources": {"serves": 1},
    "ingress_resources": {"front": 0.1},
    "supervisor_resources": {"front": 0.1},
    "distiller_resources": {"learns": 0.1},
}
WHOLE = {"engine": 2, "ingress": 2, "distiller": 1, "supervisor": 1}
"""Deployment to number of replicas."""
_REDIS_AWAY_S = 3.0
_LOOK_S = 0.1


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that dies."""

    strike: Callable[[ServeCluster, RedisServer | None], None]
    """Returns once it is dead, or was noticed to be."""
    retries: int = 0
    """How often a client may have to ask again, because its HTTP connection was cut."""


@dataclass(frozen=True, slots=True)
class Recovery:
    """How a fault was survived."""

    longest_pause_s: float
    """Longest time between two pieces of any stream."""
    answers_s: float
    """From the fault until as many answers as there are clients were complete."""
    whole_s: float
    """From the fault until every part was there again."""


def survive(
    fault: Fault,
    cluster: ServeCluster,
    redis: RedisServer | None,
    load: StreamingLoad,
    whole: Mapping[str, int] = MappingProxyType(WHOLE),
) -> Recovery:
    """Have something die, and wait until all is well again.

    Args:
        fault: what dies.
        cluster: where osd is deployed.
        redis: the outcome stream's; None: there is none.
        load: clients that stream.
        whole: deployment to its number of replicas.

    Raises:
        TimeoutError: it never is.
    """
    began_s, num_before = time.monotonic(), len(load.answers)
    fault.strike(cluster, redis)
    load.wait_for_answers(num_before + load.num_clients)
    answers_s = time.monotonic() - began_s
    for deployment, num in whole.items():
        cluster.running(deployment, num)
    whole_s = time.monotonic() - began_s
    return Recovery(max(one.longest_pause_s for one in load.answers), answers_s, whole_s)


def _kill_replica(deployment: str) -> Callable[[ServeCluster, RedisServer | None], None]:
    def strike(cluster: ServeCluster, _: RedisServer | None) -> None:
        victim = cluster.running(deployment)[0]
        os.kill(int(victim["pid"]), signal.SIGKILL)
        _wait(lambda: victim["replica_id"] not in {one["replica_id"] for one in cluster.running(deployment)})

    return strike


def _kill_node(cluster: ServeCluster, *, learns: bool) -> None:
    """The node with the distiller and an engine, or one with an engine only; another takes its place."""
    has_distiller = bool(cluster.do("replicas", deployment="distiller"))
    learning = {one["node_id"] for one in cluster.running("distiller", 1)} if has_distiller else set()
    serving = {one["node_id"] for one in cluster.running("engine")}
    cluster.do("kill_node", node_id=min(learning if learns else serving - learning))
    cluster.do("add_node", node=LEARNING_NODE if learns else SERVING_NODE)


def _kill_controller(cluster: ServeCluster, _: RedisServer | None) -> None:
    pid = cluster.do("kill_controller")
    _wait(lambda: cluster.do("controller_pid") != pid)


def _kill_redis(_: ServeCluster, redis: RedisServer | None) -> None:
    assert redis is not None
    redis.kill()
    time.sleep(_REDIS_AWAY_S)
    redis.start()


def _wait(condition: Callable[[], bool], patience_s: float = 120.0) -> None:
    deadline_s = time.monotonic() + patience_s
    while not condition():
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"nobody noticed the fault in {patience_s:g} s")
        time.sleep(_LOOK_S)


FAULTS = {
    "an engine": Fault(_kill_replica("engine")),
    "an engine's node": Fault(lambda cluster, _: _kill_node(cluster, learns=False)),
    "the distiller's node": Fault(lambda cluster, _: _kill_node(cluster, learns=True)),
    "the distiller": Fault(_kill_replica("distiller")),
    "the supervisor": Fault(_kill_replica("supervisor")),
    "a replica of the ingress": Fault(_kill_replica("ingress"), retries=1),
    "Serve's controller": Fault(_kill_controller),
    "Ray's GCS": Fault(lambda cluster, _: cluster.do("kill_gcs")),
    "Redis": Fault(_kill_redis),
}
