"""A replica of the engine that could not serve says why, before it loads anything."""

from __future__ import annotations

import fcntl
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("ray.serve", reason="not installed (osd[serve])", exc_type=ImportError)

from actors.serve import engine
from osd.records.errors import OsdError
from tests.kit.stores import config_of_store


def test_a_nodes_disk_that_cannot_keep_versions_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever deploys may be on a machine without that disk, so each engine sees for its own node."""

    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    context = SimpleNamespace(replica_id=SimpleNamespace(unique_id="r1"))
    monkeypatch.setattr("ray.serve.get_replica_context", lambda: context)
    monkeypatch.setattr(engine, "join_cluster_logs", lambda deployment, config: None)
    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.delattr(engine.EngineReplica, "__del__")  # Ray Serve awaits it, and nobody does here
    with pytest.raises(OsdError, match="cannot lock a file in .*shared/weights: Operation not supported; .*NFS"):
        engine.EngineReplica(config_of_store(f"file://{tmp_path}/shared", {}, tmp_path), "")
