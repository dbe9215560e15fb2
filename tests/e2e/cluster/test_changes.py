"""Updates and scaling under streaming load: no query is lost, and nothing is there twice."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from benchmarks.fleet.faults import WHOLE
from tests.e2e.cluster.conftest import NUM_CLIENTS, PROMPTS, Fleet
from tests.kit.waiting import wait_for

pytestmark = [pytest.mark.ray, pytest.mark.redis, pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(600)]


def test_engines_are_rolled_one_by_one_on_a_new_configuration(fleet: Fleet) -> None:
    former = {one["replica_id"] for one in fleet.cluster.running("engine", 2)}
    args = {**fleet.args, "engine": {**fleet.args["engine"], "max_slots": 3}}
    fewest = 2
    with fleet.load() as load:
        fleet.cluster.do("deploy", args=args, wait=False)

        def is_rolled() -> bool:
            nonlocal fewest
            present = {one["replica_id"] for one in fleet.cluster.running("engine")}
            fewest = min(fewest, len(present))
            return len(present) == 2 and not present & former

        wait_for(is_rolled, "two new engines", 300)
        load.wait_for_answers(len(load.answers) + NUM_CLIENTS)
    assert fewest == 1
    for deployment, num in WHOLE.items():
        fleet.cluster.running(deployment, num)


def test_the_fleet_follows_the_load(fleet: Fleet) -> None:
    """1 -> 3 -> 1, with a third node."""
    fleet.cluster.do("add_node", node={"resources": {"serves": 1}})
    cluster = {"min_engines": 1, "max_engines": 3, "target_queries": 2}
    cluster |= {"scale_up_delay_s": 1, "scale_down_delay_s": 2, "drain_s": 60}
    args = {**fleet.args, "cluster": {**fleet.args["cluster"], **cluster}}
    try:
        fleet.cluster.do("deploy", args=args)
        fleet.cluster.running("engine", 1)
        with fleet.load() as load:
            wait_for(lambda: len(fleet.cluster.running("engine")) == 3, "three engines", 120)
            load.wait_for_answers(len(load.answers) + NUM_CLIENTS)
        with ThreadPoolExecutor(1) as pool:  # one client goes on while two engines leave
            while len(fleet.cluster.running("engine")) > 1:
                assert pool.submit(fleet.ask, PROMPTS[0]).result(120) == fleet.expected[PROMPTS[0]]
    finally:
        fleet.cluster.do("deploy", args=fleet.args)


def test_with_surge_a_single_engine_is_replaced_without_a_gap(fleet: Fleet) -> None:
    cluster = {**fleet.args["cluster"], "min_engines": 1, "max_engines": 1, "surge": True}
    args = {**fleet.args, "cluster": cluster}
    try:
        fleet.cluster.do("deploy", args=args)
        (former,) = fleet.cluster.running("engine", 1)
        fewest = 1
        with fleet.load() as load:
            fleet.cluster.do("deploy", args={**args, "engine": {**args["engine"], "max_slots": 3}}, wait=False)

            def is_replaced() -> bool:
                nonlocal fewest
                present = {one["replica_id"] for one in fleet.cluster.running("engine")}
                fewest = min(fewest, len(present))
                return len(present) == 1 and former["replica_id"] not in present

            wait_for(is_replaced, "another engine", 200)
            load.wait_for_answers(len(load.answers) + NUM_CLIENTS)
        assert fewest == 1, "the successor serves before the former one goes"
    finally:
        fleet.cluster.do("deploy", args=fleet.args)
