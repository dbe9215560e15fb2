"""Three nodes; one with an engine dies under streaming load: every answer goes on elsewhere, whole."""

from __future__ import annotations

import time

import pytest

from tests.e2e.cluster.conftest import NODES, PROMPTS, Fleet

pytestmark = [pytest.mark.ray, pytest.mark.redis, pytest.mark.timeout(280)]


def test_answers_go_on_where_a_node_died(fleet: Fleet) -> None:
    assert {prompt: fleet.ask(prompt) for prompt in PROMPTS} == fleet.expected
    nodes = {one["node_id"] for one in fleet.cluster.running("engine", 2)}
    with fleet.load() as load:
        began_s = time.monotonic()
        fleet.cluster.do("kill_node", number=0)
        fleet.cluster.do("add_node", node=NODES[0])
        fleet.recover(load, "an engine's node", began_s, "engine", 2)
    assert {one["node_id"] for one in fleet.cluster.running("engine", 2)} != nodes
