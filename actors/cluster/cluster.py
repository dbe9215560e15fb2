"""Checks that a joined Ray cluster can run what the configuration asks for, before any actor is created."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import ray
import torch

from osd.config.settings import Config
from osd.records.errors import OsdError

_REDIS_PORT = 6379
"""Where a URL names none."""
_THIS_MACHINE = {"localhost", "127.0.0.1", "::1"}


@dataclass(frozen=True, slots=True)
class Node:
    """One living node of a Ray cluster."""

    address: str
    num_gpus: float
    num_cpus: float = 0.0
    resources: Mapping[str, float] = field(default_factory=dict)
    """Every Ray resource of the node by name, those two included."""


def nodes_of_cluster() -> list[Node]:
    """The living nodes of the cluster that this process has joined."""
    return [
        Node(
            node["NodeManagerAddress"],
            node["Resources"].get("GPU", 0),
            node["Resources"].get("CPU", 0),
            node["Resources"],
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def address_of_cluster() -> str:
    """`host:port` of the cluster that this process has joined, the same on all of its nodes."""
    address: str = ray.get_runtime_context().gcs_address
    return address


def check_cluster(config: Config, redis_url: str, nodes: Sequence[Node]) -> None:
    """Refuse what cannot work: state that is on one machine only where there are several, and GPUs that no node has.

    Args:
        config: everything.
        redis_url: where outcomes go; that of the embedded Redis if the configuration names none.
        nodes: of the cluster. Nodes of one address are on one machine.

    Raises:
        OsdError: one line that says what cannot work and what to do.
    """
    num_machines = len({node.address for node in nodes})
    if num_machines > 1:
        _check_shared(config, redis_url, num_machines)
    _check_gpu("target.device", config.target.device, nodes)
    if trains(config):
        _check_gpu("trainer.device", config.trainer.device, nodes)


def check_application(config: Config, nodes: Sequence[Node]) -> None:
    """Refuse what the Ray Serve application cannot do in this cluster, beside what `check_cluster` refuses.

    Args:
        config: everything.
        nodes: of the cluster.

    Raises:
        OsdError: one line that says what cannot work and what to do.
    """
    if config.outcomes.enabled and not config.outcomes.redis_url:
        raise OsdError(
            "outcomes.redis_url is empty, and an application of several processes that come and go has no embedded "
            "Redis; set outcomes.redis_url to a redis:// server that every node reaches, or outcomes.enabled to false"
        )
    check_cluster(config, config.outcomes.redis_url, nodes)
    _check_reservation(config)
    cluster = config.cluster
    for part, cpus, gpus, custom in (
        ("engine", cluster.engine_num_cpus, cluster.engine_num_gpus, cluster.engine_resources),
        ("ingress", cluster.ingress_num_cpus, 0.0, cluster.ingress_resources),
        ("distiller", cluster.distiller_num_cpus, cluster.distiller_num_gpus, cluster.distiller_resources),
        ("supervisor", 0.0, 0.0, cluster.supervisor_resources),
    ):
        if part == "distiller" and not trains(config):
            continue
        needed = {name: amount for name, amount in {"CPU": cpus, "GPU": gpus, **custom}.items() if amount}
        if not any(all(node.resources.get(name, 0) >= amount for name, amount in needed.items()) for node in nodes):
            asked = " and ".join(f"{amount:g} {name}" for name, amount in needed.items())
            raise OsdError(
                f"no node of the cluster has the {asked} that the settings cluster.{part}_* reserve; start a node that "
                "has them, or reserve less"
            )


def refuse_gcs_as_redis(config: Config, gcs_address: str) -> None:
    """Refuse the port of Ray's GCS as that of Redis: on one machine they cannot both have their default, 6379.

    Args:
        config: everything.
        gcs_address: `host:port` of the GCS.

    Raises:
        OsdError: one line that says what to do.
    """
    host, _, port = gcs_address.rpartition(":")
    url = urlsplit(config.outcomes.redis_url)
    if not config.outcomes.enabled or url.scheme == "unix" or str(url.port or _REDIS_PORT) != port:
        return
    if url.hostname in {host, *_THIS_MACHINE}:
        raise OsdError(
            f"outcomes.redis_url names {url.hostname}:{port}, where Ray's own GCS listens and not Redis; start Ray "
            "on another port (ray start --head --port=6380), or set outcomes.redis_url to where Redis is"
        )


def trains(config: Config) -> bool:
    """Whether there is a distiller."""
    return config.trainer.enabled and config.outcomes.enabled


def _check_reservation(config: Config) -> None:
    """An engine sees the GPU that Ray reserves for it, and no other."""
    device, gpus = config.target.device, config.cluster.engine_num_gpus
    if device.startswith("cuda") and not gpus:
        raise OsdError(
            f"target.device is {device!r}, and Ray hides GPUs from engines that reserve none; set "
            "cluster.engine_num_gpus to 1, or to a fraction to share one"
        )
    if device.startswith("cuda:") and device != "cuda:0":
        raise OsdError(f"target.device is {device!r}, and Ray chooses each engine's GPU; set target.device to 'cuda'")
    if device == "cpu" and gpus:
        raise OsdError(
            f"cluster.engine_num_gpus is {gpus:g}, and target.device is 'cpu'; set target.device to 'auto' or 'cuda', "
            "or reserve no GPU"
        )


def _check_shared(config: Config, redis_url: str, num_machines: int) -> None:
    where = f"the cluster has nodes on {num_machines} machines"
    if config.outcomes.enabled:
        url, fix = urlsplit(redis_url), "set outcomes.redis_url to a redis:// server that every node reaches"
        if not config.outcomes.redis_url:
            raise OsdError(f"{where}, and the embedded Redis can be reached from one of them only; {fix}")
        if url.scheme == "unix" or url.hostname in _THIS_MACHINE:
            at = "a Unix socket" if url.scheme == "unix" else str(url.hostname)
            raise OsdError(f"{where}, and outcomes.redis_url names {at}, which is another place on each; {fix}")
    if not config.store.url:
        raise OsdError(
            f"{where}, and drafter versions would be in the folder {config.state_dir} of each; "
            "set store.url to a place that every node reaches: s3://bucket/osd, or the folder of a shared disk"
        )


def _check_gpu(setting: str, device: str, nodes: Sequence[Node]) -> None:
    if not device.startswith("cuda"):
        return
    needed = (torch.device(device).index or 0) + 1
    most = max((node.num_gpus for node in nodes), default=0)
    if most < needed:
        has = f"no node of the cluster has more than {most:g} GPUs" if most else "no node of the cluster has a GPU"
        raise OsdError(f"{setting} is {device!r}, and {has}; add such a node, or set {setting} to 'cpu' or 'auto'")


def check_free_gpus(config: Config, num_gpus: float, num_free: float) -> None:
    """Refuse to wait for GPUs that other applications of the cluster have reserved.

    Args:
        config: everything.
        num_gpus: of the whole cluster.
        num_free: of these, how many nobody has reserved in Ray.

    Raises:
        OsdError: one line that says what to do.
    """
    needed = config.cluster.engine_num_gpus
    if num_free < needed:
        raise OsdError(
            f"an engine needs {needed:g} GPU, and of the cluster's {num_gpus:g} only {num_free:g} are free; stop "
            "another application (`ray status` says what is reserved), add a node, or lower cluster.engine_num_gpus"
        )
