"""Three nodes; one with an engine dies under streaming load: every answer goes on elsewhere, whole.

The only test of this folder in CI, so its service is a small one, without learning: one replica of the ingress, and no
distiller. `test_faults.py` has the whole one.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from benchmarks.fleet.cluster import ServeCluster
from benchmarks.fleet.faults import FAULTS, HEAD, SERVING_NODE, survive
from tests.e2e.cluster.conftest import PROMPTS, Fleet, deployed, reference_answers, settings
from tests.kit.saved_models import save_llama
from tests.kit.waiting import PATIENCE_S

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(400)]
_WHOLE = {"engine": 2, "ingress": 1, "supervisor": 1}


@pytest.fixture
def small_fleet(tmp_path_factory: pytest.TempPathFactory, unused_tcp_port: int) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("cluster")
    save_llama(folder / "tiny", context_tokens=1024)
    nodes = [SERVING_NODE, SERVING_NODE]
    with ThreadPoolExecutor(1) as beside:
        expected = beside.submit(reference_answers, folder)  # while the nodes start
        with ServeCluster(tmp_path_factory.mktemp("home"), unused_tcp_port, head=HEAD, nodes=nodes) as cluster:
            args: dict[str, Any] = settings(folder, "", outcomes={"enabled": False}, cluster={"num_ingress": 1})
            yield Fleet(cluster, None, args, deployed(cluster, args), expected.result(PATIENCE_S))


def test_answers_go_on_where_a_node_died(small_fleet: Fleet) -> None:
    fleet = small_fleet
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        assert dict(zip(PROMPTS, pool.map(fleet.ask, PROMPTS), strict=True)) == fleet.expected
    nodes = {one["node_id"] for one in fleet.cluster.running("engine", 2)}
    with fleet.load() as load:
        survive(FAULTS["an engine's node"], fleet.cluster, fleet.redis, load, _WHOLE)
    assert len(nodes & {one["node_id"] for one in fleet.cluster.running("engine", 2)}) == 1
