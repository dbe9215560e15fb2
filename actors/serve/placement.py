"""On what each part of the application runs: Ray's resources from the settings and the cluster's nodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from actors.cluster.cluster import Node
from osd.config.cluster import ClusterConfig


def engine_resources(cluster: ClusterConfig) -> dict[str, Any]:
    """An engine's `ray_actor_options`. Target and drafter are in one process, so one reservation covers both."""
    return _options(cluster, cluster.engine_num_cpus, cluster.engine_num_gpus, cluster.engine_resources)


def ingress_resources(cluster: ClusterConfig) -> dict[str, Any]:
    """The same for the HTTP ingress."""
    return _options(cluster, cluster.ingress_num_cpus, 0.0, cluster.ingress_resources)


def supervisor_resources(cluster: ClusterConfig) -> dict[str, Any]:
    """The same for the supervisor, which needs next to nothing."""
    return _options(cluster, 0.0, 0.0, cluster.supervisor_resources)


def distiller_resources(cluster: ClusterConfig, nodes: Sequence[Node]) -> dict[str, Any]:
    """The same for the distiller: on a device that no engine may need if there is one, else beside the engines.

    Beside them it reserves the part of a GPU that an engine leaves, or nothing; its process has the lowest priority.

    Args:
        cluster: the settings; what is set there is taken as it is.
        nodes: of the cluster, all of them.
    """
    gpus, cpus = cluster.distiller_num_gpus, cluster.distiller_num_cpus
    if gpus is None:
        gpus = _free_gpus(cluster, nodes)
    if cpus is None:
        needed = cluster.max_engines * cluster.engine_num_cpus + cluster.num_ingress * cluster.ingress_num_cpus
        cpus = 1.0 if sum(node.num_cpus for node in nodes) >= needed + 1 else 0.0
    return _options(cluster, cpus, gpus, cluster.distiller_resources)


def _free_gpus(cluster: ClusterConfig, nodes: Sequence[Node]) -> float:
    share = cluster.engine_num_gpus
    if not share:
        return 0.0
    engines_a_gpu = int(1 / share)
    whole = sum(int(node.num_gpus) for node in nodes)
    if whole > -(-cluster.max_engines // engines_a_gpu):
        return 1.0
    return round(1.0 - engines_a_gpu * share, 4)


def _options(cluster: ClusterConfig, cpus: float, gpus: float, resources: dict[str, float]) -> dict[str, Any]:
    options: dict[str, Any] = {"num_cpus": cpus, "num_gpus": gpus}
    if resources:
        options["resources"] = resources
    if cluster.runtime_env:
        options["runtime_env"] = cluster.runtime_env
    return options
