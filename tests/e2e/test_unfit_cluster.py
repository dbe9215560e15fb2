"""A cluster that cannot run what is configured is refused by `osd serve` before anything is deployed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray.serve", reason="not installed (osd[serve])", exc_type=ImportError)

from benchmarks.fleet.cluster import ServeCluster

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(280)]
_NO_STREAM = {"outcomes": {"enabled": False}}
_REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({}, "outcomes.redis_url is empty"),
    ({**_NO_STREAM, "target": {"device": "cuda"}}, "target.device is 'cuda', and no node of the cluster has a GPU"),
    ({**_NO_STREAM, "cluster": {"engine_num_cpus": 9}}, "no node of the cluster has the 9 CPU"),
    ({**_NO_STREAM, "cluster": {"engine_resources": {"fast": 1}}}, "no node of the cluster has the 1 CPU and 1 fast"),
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
