"""An engine that hangs, without dying, is replaced; its answers go on elsewhere."""

from __future__ import annotations

import os
import signal
from contextlib import suppress

import pytest

from tests.e2e.cluster.conftest import NUM_CLIENTS, Fleet
from tests.kit.waiting import wait_for

pytestmark = [pytest.mark.ray, pytest.mark.redis, pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(400)]


def test_an_engine_that_hangs_is_replaced(fleet: Fleet) -> None:
    """Its process is stopped: it answers no health check, sends nothing, and ends no connection."""
    quick = {**fleet.args["cluster"], "health_timeout_s": 5, "drain_s": 5}
    fleet.cluster.do("deploy", args={**fleet.args, "cluster": quick})
    engines = fleet.cluster.running("engine", 2)
    hung = engines[0]
    try:
        with fleet.load() as load:
            os.kill(int(hung["pid"]), signal.SIGSTOP)
            wait_for(
                lambda: hung["replica_id"] not in {one["replica_id"] for one in fleet.cluster.running("engine")},
                "Serve to give the engine up",
                200,
            )
            load.wait_for_answers(len(load.answers) + NUM_CLIENTS)
        present = {one["replica_id"] for one in fleet.cluster.running("engine", 2)}
        assert engines[1]["replica_id"] in present, "the other engine went on"
    finally:
        with suppress(ProcessLookupError):
            os.kill(int(hung["pid"]), signal.SIGCONT)
        fleet.cluster.do("deploy", args=fleet.args)
