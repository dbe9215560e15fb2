"""`osd serve --ray-address`: the admin token stays the same over updates, which thus replace nothing for its sake."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray.serve", reason="not installed (osd[serve])", exc_type=ImportError)

from osd.config.settings import Config, load_config
from osd.records.errors import OsdError
from serving import deploy


@pytest.fixture
def deployed(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """The configurations that were deployed, in a cluster that is not there."""
    configs: list[Config] = []

    @contextmanager
    def joined(config: Config) -> Iterator[None]:
        yield

    def take(application: Any, config: Config, on_progress: Any) -> None:
        configs.append(config)

    monkeypatch.setattr("actors.serve.deploy.joined", joined)
    monkeypatch.setattr("actors.serve.deploy.deploy", take)
    monkeypatch.setattr(deploy, "application", lambda config: None)
    monkeypatch.delenv("OSD_ADMIN_TOKEN", raising=False)
    return configs


def serve(state_dir: Path, **server: Any) -> str | None:
    """Returns the token that the operator is told."""
    flags = {"state_dir": state_dir, "cluster": {"address": "10.0.0.1:6379"}, "server": server}
    return deploy.deploy_to_cluster(load_config(flags=flags), lambda stage, share: None).admin_token


def test_a_token_that_was_made_is_kept(deployed: list[Config], tmp_path: Path) -> None:
    first, second = serve(tmp_path / "state"), serve(tmp_path / "state")
    assert first == second and first
    digests = {config.server.admin_token_sha256 for config in deployed}
    assert digests == {hashlib.sha256(first.encode()).hexdigest()}
    kept = tmp_path / "state" / "admin_token"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600 and kept.read_text() == first
    assert serve(tmp_path / "elsewhere") != first


def test_an_address_that_others_reach_without_a_key_is_warned_of(
    deployed: list[Config], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    serve(tmp_path)
    serve(tmp_path, host="0.0.0.0", api_keys_sha256=["ab" * 32])
    assert caplog.messages == []
    serve(tmp_path, host="0.0.0.0")
    [warning] = caplog.messages
    assert "0.0.0.0" in warning and "server.api_keys_sha256" in warning


def test_a_token_that_is_set_comes_first_and_is_not_kept(
    deployed: list[Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert serve(tmp_path, admin_token_sha256="ab" * 32) is None
    monkeypatch.setenv("OSD_ADMIN_TOKEN", "given")
    assert serve(tmp_path) is None
    assert [config.server.admin_token_sha256 for config in deployed] == [
        "ab" * 32,
        hashlib.sha256(b"given").hexdigest(),
    ]
    assert not (tmp_path / "admin_token").exists()


def test_a_folder_that_cannot_keep_it_is_named(deployed: list[Config], tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    with pytest.raises(OsdError, match="the admin token cannot be kept in .*/state/admin_token: .*set OSD_ADMIN_TOKEN"):
        serve(tmp_path / "state")
    assert deployed == []
