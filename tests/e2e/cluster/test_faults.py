"""What may die under streaming load, one after another: no query is lost, and the part comes back by itself."""

from __future__ import annotations

import time

import pytest

from tests.e2e.cluster.conftest import NODES, Fleet, kill_process
from tests.kit.waiting import wait_for

pytestmark = [pytest.mark.ray, pytest.mark.redis, pytest.mark.slow, pytest.mark.timeout(280)]


@pytest.mark.parametrize(
    ("deployment", "num", "retries"),
    [
        ("engine", 2, 0),
        ("supervisor", 1, 0),
        ("distiller", 1, 0),
        # Whose HTTP connection went through it sees it cut, and asks again.
        ("ingress", 2, 1),
    ],
)
def test_a_process_is_killed(fleet: Fleet, deployment: str, num: int, retries: int) -> None:
    victim = fleet.cluster.running(deployment, num)[0]
    with fleet.load(retries=retries) as load:
        began_s = time.monotonic()
        kill_process(victim["pid"])
        wait_for(
            lambda: victim["replica_id"] not in {one["replica_id"] for one in fleet.cluster.running(deployment)},
            "Serve to notice",
            120,
        )
        fleet.recover(load, f"{deployment} killed", began_s, deployment, num)


def test_the_distillers_node_dies(fleet: Fleet) -> None:
    """It has an engine, too."""
    (distiller,) = fleet.cluster.running("distiller", 1)
    number = fleet.cluster.do("nodes").index(distiller["node_id"])
    with fleet.load() as load:
        began_s = time.monotonic()
        fleet.cluster.do("kill_node", number=number)
        fleet.cluster.do("add_node", node=NODES[1])
        fleet.recover(load, "the distiller's node", began_s, "distiller", 1)
        fleet.cluster.running("engine", 2)


def test_serves_controller_is_killed(fleet: Fleet) -> None:
    with fleet.load() as load:
        began_s = time.monotonic()
        pid = fleet.cluster.do("kill_controller")
        assert wait_for(lambda: fleet.cluster.do("controller_pid"), "a controller", 120) != pid
        fleet.recover(load, "Serve's controller", began_s, "engine", 2)


def test_the_gcs_is_killed(fleet: Fleet) -> None:
    with fleet.load() as load:
        began_s = time.monotonic()
        fleet.cluster.do("kill_gcs")
        fleet.recover(load, "Ray's GCS", began_s, "engine", 2)


def test_redis_is_killed(fleet: Fleet) -> None:
    with fleet.load() as load:
        began_s = time.monotonic()
        fleet.redis.kill()
        num_before = len(load.answers)
        wait_for(lambda: len(load.answers) > num_before, "an answer without Redis", 120)
        fleet.redis.start()
        fleet.recover(load, "Redis", began_s, "engine", 2)
