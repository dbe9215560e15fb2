"""What Ray is asked to reserve for each part of the application."""

from __future__ import annotations

from typing import Any

import pytest

from actors.cluster.cluster import Node
from actors.serve.placement import distiller_resources, engine_resources
from osd.config.cluster import ClusterConfig


def _nodes(*gpus: float, cpus: float = 4) -> list[Node]:
    return [Node(f"10.0.0.{number}", num, cpus) for number, num in enumerate(gpus)]


def test_an_engine_reserves_what_is_set() -> None:
    cluster = ClusterConfig(
        engine_num_cpus=2, engine_num_gpus=0.5, engine_resources={"a100": 1}, runtime_env={"env_vars": {"A": "1"}}
    )
    assert engine_resources(cluster) == {
        "num_cpus": 2,
        "num_gpus": 0.5,
        "resources": {"a100": 1},
        "runtime_env": {"env_vars": {"A": "1"}},
    }


@pytest.mark.parametrize(
    ("nodes", "settings", "gpus", "cpus"),
    [
        (_nodes(1, 1, 1), {"max_engines": 2, "engine_num_gpus": 1}, 1.0, 1.0),  # one GPU is left
        (_nodes(1, 1), {"max_engines": 2, "engine_num_gpus": 1}, 0.0, 1.0),  # none is: beside them, on CPUs
        (_nodes(1, 1), {"max_engines": 2, "engine_num_gpus": 0.8}, 0.2, 1.0),  # beside them, on a shared one
        (_nodes(1, 1), {"max_engines": 2, "engine_num_gpus": 0.5}, 1.0, 1.0),  # both engines fit on one
        (_nodes(1), {"max_engines": 2, "engine_num_gpus": 0.5}, 0.0, 1.0),
        (_nodes(0, 0, cpus=1), {"max_engines": 2}, 0.0, 0.0),  # all CPUs may be needed
        (_nodes(0, 0, cpus=1), {"max_engines": 1, "num_ingress": 2, "ingress_num_cpus": 0.5}, 0.0, 0.0),
        (_nodes(1, 1), {"max_engines": 1, "engine_num_gpus": 1, "distiller_num_gpus": 0}, 0.0, 1.0),
        (_nodes(0), {"distiller_num_cpus": 3}, 0.0, 3.0),
    ],
)
def test_the_distiller_takes_what_no_engine_may_need(
    nodes: list[Node], settings: dict[str, Any], gpus: float, cpus: float
) -> None:
    options = distiller_resources(ClusterConfig(**settings), nodes)
    assert (options["num_gpus"], options["num_cpus"]) == (gpus, cpus)
