"""Checks that a joined Ray cluster can run what the configuration asks for, before any actor is created."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import ray
import torch

from osd.config.settings import Config
from osd.records.errors import OsdError

_THIS_MACHINE = {"localhost", "127.0.0.1", "::1"}


@dataclass(frozen=True, slots=True)
class Node:
    """One living node of a Ray cluster."""

    address: str
    num_gpus: float


def nodes_of_cluster() -> list[Node]:
    """The living nodes of the cluster that this process has joined."""
    return [Node(node["NodeManagerAddress"], node["Resources"].get("GPU", 0)) for node in ray.nodes() if node["Alive"]]


def check_cluster(config: Config, redis_url: str, nodes: Sequence[Node]) -> None:
    """Refuse what cannot work: state that is on one node only where there are several, and GPUs that no node has.

    Args:
        config: everything.
        redis_url: where outcomes go; that of the embedded Redis if the configuration names none.
        nodes: of the cluster.

    Raises:
        OsdError: one line that says what cannot work and what to do.
    """
    if len(nodes) > 1:
        _check_shared(config, redis_url, len(nodes))
    _check_gpu("target.device", config.target.device, nodes)
    if config.trainer.enabled and config.outcomes.enabled:
        _check_gpu("trainer.device", config.trainer.device, nodes)


def _check_shared(config: Config, redis_url: str, num_nodes: int) -> None:
    where = f"the cluster has {num_nodes} nodes"
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
