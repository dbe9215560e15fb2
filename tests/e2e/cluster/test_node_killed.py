"""Three nodes; one with an engine dies under streaming load: every answer goes on elsewhere, whole."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from benchmarks.fleet.faults import FAULTS, survive
from tests.e2e.cluster.conftest import PROMPTS, Fleet

pytestmark = [pytest.mark.ray, pytest.mark.redis, pytest.mark.slow, pytest.mark.timeout(280)]


def test_answers_go_on_where_a_node_died(fleet: Fleet) -> None:
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        assert dict(zip(PROMPTS, pool.map(fleet.ask, PROMPTS), strict=True)) == fleet.expected
    nodes = {one["node_id"] for one in fleet.cluster.running("engine", 2)}
    with fleet.load() as load:
        survive(FAULTS["an engine's node"], fleet.cluster, fleet.redis, load)
    assert len(nodes & {one["node_id"] for one in fleet.cluster.running("engine", 2)}) == 1
