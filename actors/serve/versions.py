"""Versions of deployments. Ray Serve replaces the replicas whose version has changed, and no others.

Given no version, Serve makes up a new one at each deployment, and replaces everything.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from osd.config.cluster import ClusterConfig
from osd.config.monitor import MonitorConfig
from osd.config.server import ServerConfig
from osd.config.settings import Config

_OF_REPLICAS = ("application", "report_interval_s", "engine_num_cpus", "num_ingress")
"""Settings of the section `cluster` that replicas read. The others say what Serve does with replicas."""
_PACKAGES = ("osd", "trainer", "actors", "serving")
_SUFFIXES = {".py", ".js", ".css", ".html"}


def config_of_replicas(config: Config) -> Config:
    """The configuration with defaults for what only Serve reads, so that a change of that replaces no replica."""
    kept = {name: getattr(config.cluster, name) for name in _OF_REPLICAS}
    return config.model_copy(update={"cluster": ClusterConfig(**kept)})


def config_of_engines(config: Config) -> Config:
    """The same for engines and the distiller, which read nothing about HTTP, the history and alerts."""
    narrow = config_of_replicas(config)
    cluster = narrow.cluster.model_copy(update={"num_ingress": ClusterConfig().num_ingress})
    return narrow.model_copy(update={"cluster": cluster, "server": ServerConfig(), "monitor": MonitorConfig()})


def config_of_supervisor(config: Config) -> Config:
    """The same for the supervisor, which writes the history and follows alerts."""
    return config_of_engines(config).model_copy(update={"monitor": config.monitor})


def versioned(deployment: Any, *made_of: BaseModel | str) -> Any:
    """The deployment with a version that follows from osd's code and from what its replicas are made of.

    Args:
        deployment: of Ray Serve.
        made_of: the arguments of its replicas.
    """
    # `_internal`: Serve keeps versions, but offers no other way to say that nothing has changed.
    return deployment.options(version=version_of(*made_of), _internal=True)


def version_of(*made_of: BaseModel | str) -> str:
    """A digest of osd's code and of the arguments."""
    plain = [one.model_dump(mode="json") if isinstance(one, BaseModel) else one for one in made_of]
    return hashlib.sha256(json.dumps([_code(), *plain], sort_keys=True).encode()).hexdigest()[:32]


@cache
def _code() -> str:
    """A digest of all source files."""
    root, digest = Path(__file__).parents[2], hashlib.sha256()
    for package in _PACKAGES:
        for path in sorted((root / package).rglob("*")):
            if path.suffix in _SUFFIXES:
                digest.update(f"{path.relative_to(root)}\0".encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()
