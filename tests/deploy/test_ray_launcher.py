"""What `ray up` and `ray exec` would run on the machine of deploy/ray/cluster.yaml, run on one: all but its set-up."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.deploy_files import DEPLOY, documents
from tests.kit.machines import Machine, network
from tests.kit.saved_models import save_llama
from tests.kit.waiting import wait_for

pytest.importorskip("ray.serve", reason="not installed (osd[serve])", exc_type=ImportError)
pytestmark = [pytest.mark.ray, pytest.mark.redis, pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(400)]
_FILE = DEPLOY / "ray" / "cluster.yaml"
_ASK = """
import json, sys, httpx
with httpx.Client(base_url="http://127.0.0.1:8000", timeout=60) as client:
    (model,) = client.get("/v1/models").raise_for_status().json()["data"]
    asked = {"model": model["id"], "prompt": "the sea is", "max_tokens": 16, "temperature": 0, "ignore_eos": True}
    print(client.post("/v1/completions", json=asked).raise_for_status().json()["usage"]["completion_tokens"])
"""
_COUNT = "import redis; print(redis.Redis().xlen('osd:outcomes'))"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The home folder on the machine's own disk."""
    return tmp_path / "home"


@pytest.fixture
def machine(home: Path) -> Iterator[Machine]:
    with network([Path("/tmp/ray"), home]) as net:
        yield net.add("osd-1")


def test_its_commands_start_a_service_that_answers_and_records(machine: Machine, home: Path, tmp_path: Path) -> None:
    (cluster,) = documents(_FILE)
    (deploy,) = re.findall(r"ray exec \S+ '([^']+)'", _FILE.read_text())
    # As the set-up leaves it, but that the model is a tiny one.
    sources = tmp_path / "osd"
    (sources / "deploy" / "ray").mkdir(parents=True)
    (sources / "deploy" / "redis").symlink_to(DEPLOY / "redis")
    (service,) = documents(DEPLOY / "ray" / "serve.yaml")
    service["applications"][0]["args"] |= {
        "target": {"model": str(save_llama(tmp_path / "tiny")), "dtype": "float32", "max_context_tokens": 128},
        "drafter": {"vocab_tokens": 128},
    }
    (sources / "deploy" / "ray" / "serve.yaml").write_text(json.dumps(service))
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("OSD_", "RAY_"))},
        "HOME": str(home),
        "XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache"),
        "PYTHONPATH": str(DEPLOY.parent),
    }

    def do(command: str) -> str:
        told = machine.run("bash", "-c", f"cd {home} && {command}", environment=environment)
        assert told.returncode == 0, told.stdout + told.stderr
        return told.stdout

    do(f"cp -rL {sources} osd && ln -s {sys.prefix} venv")
    token = [command for command in cluster["setup_commands"] if "token" in command]
    for command in (*token, *cluster["head_start_ray_commands"], deploy):
        do(command.replace("/home/osd", str(home)))

    def python(program: str) -> str:
        """What it prints; nothing if it fails."""
        return machine.run(sys.executable, "-c", program, environment=environment).stdout.strip()

    assert wait_for(lambda: python(_ASK), "an answer", 200) == "16"
    wait_for(lambda: int(python(_COUNT) or 0) > 0, "the outcome in Redis")
