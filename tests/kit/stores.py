"""Folders that a weight store can be kept in, by protocol: a disk, this process's memory, a local double of S3."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from osd.config.paths import weights_path
from osd.config.settings import Config, load_config

PROTOCOLS = ("file", "memory", "s3")
_BUCKET = "osd-test"


def weights_dir(state_dir: Path, target_id: str, drafter: str) -> Path:
    """The versions of one drafter for one target, in a state folder."""
    return state_dir / weights_path(target_id, drafter)


def config_of_store(url: str, options: dict[str, Any], tmp_path: Path) -> Config:
    """A configuration with that store, and a state folder of its own."""
    return load_config(flags={"state_dir": tmp_path / "state", "store": {"url": url, "options": options}})


@contextmanager
def s3_server() -> Iterator[dict[str, Any]]:
    """moto's server with a bucket; gives the arguments of the file system."""
    pytest.importorskip("s3fs", reason="osd[s3] is not installed")
    server_module = pytest.importorskip("moto.server", reason="moto with its server is not installed")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        options = {"endpoint_url": f"http://{host}:{port}", "key": "test", "secret": "test"}
        import fsspec

        fsspec.filesystem("s3", **options).makedirs(_BUCKET, exist_ok=True)  # moto keeps buckets for the process
        yield options
    finally:
        server.stop()


def url_of(protocol: str, tmp_path: Path) -> str:
    """A place that nobody else uses."""
    name = uuid.uuid4().hex
    return {"file": f"file://{tmp_path}/{name}", "memory": f"memory://{name}", "s3": f"s3://{_BUCKET}/{name}"}[protocol]
