"""What is reserved and set for replicas is what they get. Ray counts GPUs that a node says it has; none is needed."""

from __future__ import annotations

from typing import Any

import psutil
import pytest

from benchmarks.fleet.cluster import ServeCluster
from benchmarks.fleet.redis_server import RedisServer
from tests.e2e.cluster.conftest import deployed, settings
from tests.kit.saved_models import save_llama

pytestmark = [pytest.mark.ray, pytest.mark.redis, pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(400)]
_WITHOUT: dict[str, Any] = {f"{part}_resources": {} for part in ("engine", "ingress", "distiller", "supervisor")}


def test_fractions_of_a_gpu_and_a_runtime_env(
    tmp_path_factory: pytest.TempPathFactory, unused_tcp_port_factory: Any
) -> None:
    """Two engines share a GPU, and the distiller has what they leave of it."""
    folder = tmp_path_factory.mktemp("cluster")
    save_llama(folder / "tiny")
    cluster_args: dict[str, Any] = {
        **_WITHOUT,
        "engine_num_gpus": 0.4,
        "num_ingress": 1,
        "runtime_env": {"env_vars": {"SET_BY_THE_OPERATOR": "seven"}},
    }
    with (
        RedisServer(tmp_path_factory.mktemp("redis"), unused_tcp_port_factory()) as redis,
        ServeCluster(
            tmp_path_factory.mktemp("home"), unused_tcp_port_factory(), head={"num_gpus": 1}, nodes=[]
        ) as cluster,
    ):
        assert cluster.do("available", resource="GPU") == 1.0
        deployed(cluster, settings(folder, redis.url, target={"max_context_tokens": 128}, cluster=cluster_args))
        assert cluster.do("available", resource="GPU") == pytest.approx(0.0, abs=1e-6)
        for deployment, num in {"engine": 2, "distiller": 1, "ingress": 1}.items():
            for replica in cluster.running(deployment, num):
                assert psutil.Process(int(replica["pid"])).environ()["SET_BY_THE_OPERATOR"] == "seven"
