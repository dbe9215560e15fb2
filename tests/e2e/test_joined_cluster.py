"""A Ray that somebody else started is joined as its operator says: with that operator's token, wherever it listens."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import run_service, service_config
from tests.kit.saved_models import save_llama

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(280)]
_HEAD = """
import ray
context = ray.init(address="local", include_dashboard=False, num_cpus=1, object_store_memory=80 << 20)
print(context.address_info["gcs_address"], flush=True)
input()
"""


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Its address; this process has its token."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "ab" * 32)
    with subprocess.Popen(
        [sys.executable, "-c", _HEAD],
        text=True,
        env={**os.environ, "HOME": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as head:
        assert head.stdout is not None
        yield head.stdout.readline().strip()
        head.communicate("\n", timeout=60)


def test_a_cluster_is_joined_with_the_operators_token(cluster: str, tmp_path: Path) -> None:
    config = service_config(
        tmp_path / "state",
        save_llama(tmp_path / "tiny"),
        cluster={"address": cluster},
        outcomes={"enabled": False},
        trainer={"enabled": False},
    )
    for service in run_service(config):
        assert service.answer("the sea is", 8).usage.completion_tokens == 8
        assert service.status()["restarts"] == {"engine": 0, "ray": 0}
