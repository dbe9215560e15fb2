"""A Ray cluster of three nodes on this machine, with osd deployed to it: tiny models, a real Redis."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from osd.assembly.engine import open_engine
from osd.config.settings import load_config
from osd.io.find_redis import find_redis_server
from osd.records.query import SamplingParams
from tests.kit.saved_models import save_llama
from tests.kit.serve_cluster import ServeCluster
from tests.kit.waiting import wait_for

ADMIN_TOKEN = "an admin token"
PROMPTS = ["the sea is", "list three fruits", "def add(a, b):", "once upon a time", "12 + 30 =", "hello, who are you"]
NUM_TOKENS = 300


@dataclass
class Deployed:
    """osd in a cluster."""

    cluster: ServeCluster
    args: dict[str, Any]
    model: str
    expected: dict[str, str]
    """Prompt to the reference's greedy answer of `NUM_TOKENS` tokens."""

    def ask(self, prompt: str) -> str:
        """A whole answer."""
        asked = {"model": self.model, "prompt": prompt, "max_tokens": NUM_TOKENS, "temperature": 0, "ignore_eos": True}
        response = httpx.post(f"{self.cluster.url}/v1/completions", json=asked, timeout=120)
        response.raise_for_status()
        text: str = response.json()["choices"][0]["text"]
        return text


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory, unused_tcp_port_factory: Any) -> Iterator[str]:
    """A redis-server of its own."""
    port = unused_tcp_port_factory()
    folder = tmp_path_factory.mktemp("redis")
    command = [str(find_redis_server()), "--port", str(port), "--bind", "127.0.0.1", "--appendonly", "yes"]
    with subprocess.Popen([*command, "--dir", str(folder)], stdout=subprocess.DEVNULL) as server:
        yield f"redis://127.0.0.1:{port}/0"
        server.terminate()


def settings(folder: Path, redis_url: str, **sections: dict[str, Any]) -> dict[str, Any]:
    """osd's settings for a tiny target whose engines may be on any node."""
    values: dict[str, Any] = {
        "state_dir": str(folder / "state"),
        "target": {"model": str(folder / "tiny"), "dtype": "float32", "max_context_tokens": 1024, "threads": 1},
        "engine": {"max_slots": 4, "prefill_chunk_tokens": 32},
        "drafter": {"vocab_tokens": 128},
        "outcomes": {"redis_url": redis_url},
        "trainer": {"max_utilisation": 1.0},
        "server": {"admin_token_sha256": hashlib.sha256(ADMIN_TOKEN.encode()).hexdigest()},
        "cluster": {
            "engine_resources": {"serves": 1},
            "ingress_resources": {"front": 0.1},
            "supervisor_resources": {"front": 0.1},
            "distiller_resources": {"learns": 1},
            "health_interval_s": 1,
        },
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    return values


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """(a folder with a saved tiny target, the reference's answers)."""
    folder = tmp_path_factory.mktemp("cluster")
    save_llama(folder / "tiny", context_tokens=1024)
    config = load_config(
        flags=settings(folder, "", outcomes={"enabled": False}, speculation={"enabled": False})
        | {"state_dir": folder / "reference", "cluster": {}}
    )
    engine = open_engine(config)
    expected = dict.fromkeys(PROMPTS, "")
    params = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True)
    for delta in engine.generate(PROMPTS, params):
        expected[PROMPTS[int(delta.request_id)]] += delta.text
    return folder, expected


@pytest.fixture
def deployed(
    tiny: tuple[Path, dict[str, str]], redis_url: str, tmp_path: Path, unused_tcp_port: int
) -> Iterator[Deployed]:
    """Two engines on two nodes; HTTP, the supervisor and Serve's controller on the head, the distiller on the last."""
    folder, expected = tiny
    head = {"resources": {"front": 1}}
    nodes = [{"resources": {"serves": 1}}, {"resources": {"serves": 1, "learns": 1}}]
    with ServeCluster(tmp_path, unused_tcp_port, head=head, nodes=nodes) as cluster:
        args = settings(folder, redis_url, cluster={"min_engines": 2, "max_engines": 3})
        cluster.do("deploy", args=args)
        with httpx.Client(base_url=cluster.url, timeout=60) as client:
            wait_for(lambda: client.get("/ready").status_code == 200, "osd to be ready")
            (model,) = client.get("/v1/models").json()["data"]
        yield Deployed(cluster, args, model["id"], expected)
