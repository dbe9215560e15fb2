"""A Ray that somebody else started is deployed to as its operator says: with that operator's token, by `osd serve`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from osd.assembly.engine import open_engine
from osd.config.settings import load_config
from osd.records.query import SamplingParams
from tests.kit.saved_models import save_llama
from tests.kit.waiting import wait_for

pytest.importorskip("ray.serve", reason="not installed (osd[serve])", exc_type=ImportError)
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(400)]
_ROOT = Path(__file__).parents[2]
_HEAD = """
import json, sys
import ray
from ray import serve
context = ray.init(address="local", include_dashboard=False, num_cpus=4, object_store_memory=80 << 20)
print(context.address_info["gcs_address"], flush=True)
for line in sys.stdin:
    if line.strip() == "delete":
        serve.delete("osd", _blocking=False)
    application = serve.status().applications.get("osd")
    deployments = application.deployments if application else {}
    print(json.dumps({name: one.replica_states for name, one in deployments.items()}), flush=True)
serve.shutdown()
ray.shutdown()
"""
_WHOLE = {"engine": {"RUNNING": 1}, "supervisor": {"RUNNING": 1}, "ingress": {"RUNNING": 2}}


class _Cluster:
    def __init__(self, head: subprocess.Popen[str], environment: dict[str, str]) -> None:
        assert head.stdout is not None
        self._head, self._environment = head, environment
        self._address = head.stdout.readline().strip()

    def replicas(self, command: str = "") -> dict[str, Any]:
        """Deployment to state to number of replicas, after a command."""
        assert self._head.stdin is not None and self._head.stdout is not None
        self._head.stdin.write(f"{command}\n")
        self._head.stdin.flush()
        states: dict[str, Any] = json.loads(self._head.stdout.readline())
        return states

    def osd_serve(self, *flags: str) -> subprocess.CompletedProcess[str]:
        """Run `osd serve` on this cluster until it returns."""
        return self._run("serving.cli.app", "serve", "--ray-address", self._address, *flags)

    def serve_run(self, file: Path) -> subprocess.CompletedProcess[str]:
        """Have Ray Serve's own command deploy a file of its format."""
        return self._run("ray.serve.scripts", "run", "--non-blocking", "--address", self._address, str(file))

    def _run(self, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", module, *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=self._environment, cwd=_ROOT, timeout=240)


@pytest.fixture
def cluster() -> Iterator[_Cluster]:
    """One node; this process does not join it."""
    environment = {**os.environ, "PYTHONPATH": str(_ROOT), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "ab" * 32}
    environment |= {"RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0", "RAY_SERVE_LOG_TO_STDERR": "0"}
    with subprocess.Popen(
        [sys.executable, "-c", _HEAD],
        text=True,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as head:
        try:
            yield _Cluster(head, environment)
            head.communicate(timeout=60)
        finally:
            head.kill()


def _engines(client: httpx.Client, token: str) -> list[tuple[str, int]]:
    """(id, process) of each engine that reports."""

    def reports() -> list[tuple[str, int]]:
        answer = client.get("/admin/api/engines", headers={"Authorization": f"Bearer {token}"})
        return [(one["engine_id"], one["pid"]) for one in answer.json()] if answer.status_code == 200 else []

    return wait_for(reports, "an engine's report")


def _check_log(client: httpx.Client, token: str, path: Path) -> None:
    """The records of every replica are in the supervisor's file, and none holds a prompt."""
    headers = {"Authorization": f"Bearer {token}", "X-Request-Id": "the-policy"}
    client.post("/admin/api/policy", json={"domain": "code", "length": 1}, headers=headers).raise_for_status()

    def audited() -> list[dict[str, Any]]:
        lines = path.read_text().splitlines() if path.exists() else []
        return [one for one in map(json.loads, lines) if one.get("request_id") == "the-policy"]

    (record,) = wait_for(audited, "an ingress replica's record in the log that the supervisor keeps")
    assert record["process"].startswith("ingress-") and record["node"] and "audit: token" in record["message"]
    assert "the sea is" not in path.read_text()


def test_a_cluster_is_deployed_to_and_updated(cluster: _Cluster, tmp_path: Path, unused_tcp_port: int) -> None:
    target = save_llama(tmp_path / "tiny")
    flags = ["--target", str(target), "--dtype", "float32", "--threads", "1", "--port", str(unused_tcp_port)]
    flags += ["--max-context-tokens", "128", "--drafter.vocab_tokens", "128", "--state-dir", str(tmp_path / "state")]
    without_redis = cluster.osd_serve(*flags)
    assert without_redis.returncode == 2
    assert without_redis.stderr.startswith("error: outcomes.redis_url is empty"), without_redis.stderr
    flags += ["--no-outcomes.enabled", "--log-level", "debug", "--log-format", "json"]
    first = cluster.osd_serve(*flags)
    assert first.returncode == 0, first.stderr
    assert f"http://127.0.0.1:{unused_tcp_port}/v1" in first.stdout and "goes on in the cluster" in first.stdout
    assert cluster.replicas() == _WHOLE
    reference = open_engine(
        load_config(
            flags={
                "state_dir": tmp_path / "other",
                "target": {"model": str(target), "dtype": "float32", "max_context_tokens": 128},
                "drafter": {"vocab_tokens": 128},
            }
        )
    )
    expected = "".join(
        delta.text for delta in reference.generate(["the sea is"], SamplingParams(temperature=0.0, max_tokens=16))
    )
    with httpx.Client(base_url=f"http://127.0.0.1:{unused_tcp_port}", timeout=60) as client:
        (model,) = client.get("/v1/models").json()["data"]
        asked = {"model": model["id"], "prompt": "the sea is", "max_tokens": 16, "temperature": 0}
        assert client.post("/v1/completions", json=asked).json()["choices"][0]["text"] == expected
        assert client.post("/v1/completions", json={**asked, "temperature": -1}).status_code == 400
        token = (tmp_path / "state" / "admin_token").read_text()
        assert token in first.stdout
        engines = _engines(client, token)
        _check_log(client, token, tmp_path / "state" / "logs" / "osd.log")
        second = cluster.osd_serve(*flags, "--served-model-name", "another")
        assert second.returncode == 0, second.stderr
        assert cluster.replicas() == _WHOLE, "updated, not doubled"
        assert _engines(client, token) == engines, "of which nothing has changed"
        assert (
            client.post("/v1/completions", json={**asked, "model": "another"}).json()["choices"][0]["text"] == expected
        )
    elsewhere = cluster.osd_serve(*flags, "--port", str(unused_tcp_port + 1))
    assert elsewhere.returncode == 2 and "give that address with --host and --port" in elsewhere.stderr
    cluster.replicas("delete")
    wait_for(lambda: cluster.replicas() == {}, "the application to be gone", 200)


def test_serves_own_command_takes_it_by_name(cluster: _Cluster, tmp_path: Path, unused_tcp_port: int) -> None:
    """Given twice, it is there once."""
    args = {
        "state_dir": str(tmp_path / "state"),
        "target": {"model": str(save_llama(tmp_path / "tiny")), "dtype": "float32", "max_context_tokens": 128},
        "drafter": {"vocab_tokens": 128},
        "outcomes": {"enabled": False},
        "cluster": {"num_ingress": 1},
    }
    application = {"name": "osd", "route_prefix": "/", "import_path": "serving.ray_serve:build", "args": args}
    file = tmp_path / "serve.yaml"
    http = {"host": "127.0.0.1", "port": unused_tcp_port}
    file.write_text(json.dumps({"http_options": http, "applications": [application]}))  # JSON is YAML
    whole = {**_WHOLE, "ingress": {"RUNNING": 1}}
    for _ in range(2):
        told = cluster.serve_run(file)
        assert told.returncode == 0, told.stderr
        wait_for(lambda: cluster.replicas() == whole, "the application to run", 200)
    asked = {"prompt": "the sea is", "max_tokens": 16, "temperature": 0}
    with httpx.Client(base_url=f"http://127.0.0.1:{unused_tcp_port}", timeout=60) as client:
        (model,) = client.get("/v1/models").json()["data"]
        assert client.post("/v1/completions", json={**asked, "model": model["id"]}).status_code == 200
