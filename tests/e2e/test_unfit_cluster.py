"""A cluster that cannot run what is configured is refused before any actor is created."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors.topology import start
from osd.records.errors import OsdError
from tests.e2e.conftest import service_config
from tests.kit.saved_models import save_llama

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(280)]
_TWO_NODES = """
from ray.cluster_utils import Cluster
node = {"num_cpus": 1, "object_store_memory": 80 << 20}
cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
cluster.add_node(**node)
print(cluster.address, flush=True)
input()
cluster.shutdown()
"""
_NO_STREAM = {"outcomes": {"enabled": False}}
_SHARED = {**_NO_STREAM, "store": {"url": "/mnt/shared"}}
_REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({}, "the cluster has 2 nodes, and the embedded Redis can be reached from one of them only; set outcomes"),
    (_NO_STREAM, "the cluster has 2 nodes, and drafter versions would be in the folder"),
    (_SHARED, "target.device is 'cuda', and no node of the cluster has a GPU"),
]


@pytest.fixture
def two_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a cluster whose nodes are on this machine; this process has its token."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "ab" * 32)
    environment = {**os.environ, "HOME": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", _TWO_NODES],
        text=True,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as cluster:
        assert cluster.stdout is not None
        yield cluster.stdout.readline().strip()
        cluster.communicate("\n", timeout=60)


def test_what_two_nodes_cannot_do_is_refused(two_nodes: str, tmp_path: Path) -> None:
    target = save_llama(tmp_path / "tiny")
    for sections, says in _REFUSALS:
        config = service_config(tmp_path / "state", target, cluster={"address": two_nodes}, **sections)
        config = config.model_copy(update={"target": config.target.model_copy(update={"device": "cuda"})})
        with pytest.raises(OsdError, match=says):
            start(config).close()
