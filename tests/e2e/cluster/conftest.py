"""A Ray cluster of three nodes on this machine, with osd deployed to it: tiny models, a real Redis."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from osd.assembly.engine import open_engine
from osd.config.settings import load_config
from osd.io.find_redis import find_redis_server
from osd.records.query import SamplingParams
from tests.kit.saved_models import save_llama
from tests.kit.serve_cluster import ServeCluster
from tests.kit.streaming_load import StreamingLoad, streaming_load
from tests.kit.waiting import wait_for

pytest.importorskip("ray.serve", reason="not installed (osd[serve])", exc_type=ImportError)
ADMIN_TOKEN = "an admin token"
PROMPTS = ["the sea is", "list three fruits", "def add(a, b):", "once upon a time", "12 + 30 =", "hello, who are you"]
NUM_TOKENS, NUM_CLIENTS = 300, 6
HEAD = {"resources": {"front": 1}}
NODES = [{"resources": {"serves": 1}}, {"resources": {"serves": 1, "learns": 1}}]
"""Two engines on two nodes; HTTP, the supervisor and Serve's controller on the head, the distiller on the last."""


class RedisServer:
    """A redis-server that can be killed and started again.

    Args:
        folder: for its append-only file.
        port: where it listens.
    """

    def __init__(self, folder: Path, port: int) -> None:
        self._command = [str(find_redis_server()), "--port", str(port), "--bind", "127.0.0.1"]
        self._command += ["--appendonly", "yes", "--dir", str(folder)]
        self.address, self.url = f"127.0.0.1:{port}", f"redis://127.0.0.1:{port}/0"

    def start(self) -> None:
        """Start it."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)

    def kill(self) -> None:
        """Kill it."""
        self._process.kill()
        self._process.wait()


@dataclass
class Fleet:
    """osd in a cluster."""

    cluster: ServeCluster
    redis: RedisServer
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

    @contextmanager
    def load(self, *, retries: int = 0) -> Iterator[StreamingLoad]:
        """Clients that stream, of whom all have begun; on exit, no query may be lost, and each has its whole answer."""
        with streaming_load(self.cluster.url, self.model, PROMPTS, NUM_TOKENS, NUM_CLIENTS, retries=retries) as load:
            wait_for(lambda: load.num_open == NUM_CLIENTS, "every client's answer to have begun")
            yield load
        assert not load.lost(self.expected)
        assert {one.num_tokens for one in load.answers} == {NUM_TOKENS}

    def recover(self, load: StreamingLoad, fault: str, began_s: float, deployment: str, num: int) -> None:
        """Wait until a deployment has its replicas again and answers have come; tell how long it took."""
        num_before = len(load.answers)
        wait_for(lambda: len(load.answers) >= num_before + NUM_CLIENTS, "answers after the fault", 120)
        served_s = time.monotonic() - began_s
        self.cluster.running(deployment, num)
        pause_s = max(one.longest_pause_s for one in load.answers)
        whole_s = time.monotonic() - began_s
        figures = f"longest pause of a stream {pause_s:.1f} s, {NUM_CLIENTS} more answers after {served_s:.1f} s, "
        sys.stdout.write(f"\n{fault}: {figures}all parts there after {whole_s:.1f} s\n")


@contextmanager
def redis_server(folder: Path, port: int) -> Iterator[RedisServer]:
    """A redis-server of its own."""
    server = RedisServer(folder, port)
    server.start()
    try:
        yield server
    finally:
        server.kill()


def settings(folder: Path, redis_url: str, **sections: dict[str, Any]) -> dict[str, Any]:
    """osd's settings for a tiny target whose engines may be on any node."""
    values: dict[str, Any] = {
        "state_dir": str(folder / "state"),
        "target": {"model": str(folder / "tiny"), "dtype": "float32", "max_context_tokens": 1024, "threads": 1},
        "engine": {"max_slots": 4, "prefill_chunk_tokens": 32},
        "drafter": {"vocab_tokens": 128},
        "outcomes": {"redis_url": redis_url},
        "server": {"admin_token_sha256": hashlib.sha256(ADMIN_TOKEN.encode()).hexdigest()},
        "cluster": {
            "min_engines": 2,
            "max_engines": 2,
            "engine_resources": {"serves": 1},
            "ingress_resources": {"front": 0.1},
            "supervisor_resources": {"front": 0.1},
            "distiller_resources": {"learns": 0.1},
            "health_interval_s": 1,
        },
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    return values


def kill_process(pid: str) -> None:
    """Kill a process of the cluster."""
    psutil.Process(int(pid)).kill()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """(a folder with a saved tiny target, the reference's answers)."""
    folder = tmp_path_factory.mktemp("cluster")
    save_llama(folder / "tiny", context_tokens=1024)
    plain = settings(folder, "", outcomes={"enabled": False}, speculation={"enabled": False})
    engine = open_engine(load_config(flags={**plain, "state_dir": folder / "reference", "cluster": {}}))
    expected = dict.fromkeys(PROMPTS, "")
    params = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True)
    for delta in engine.generate(PROMPTS, params):
        expected[PROMPTS[int(delta.request_id)]] += delta.text
    return folder, expected


@pytest.fixture(scope="session")
def shared_fleet(
    tiny: tuple[Path, dict[str, str]], tmp_path_factory: pytest.TempPathFactory, unused_tcp_port_factory: Any
) -> Iterator[Fleet]:
    """Started once, because that takes long. Ray's GCS keeps its state in a Redis, the outcomes are in another."""
    folder, expected = tiny
    of_ray, of_outcomes = (tmp_path_factory.mktemp("redis") for _ in range(2))
    with (
        redis_server(of_ray, unused_tcp_port_factory()) as gcs_redis,
        redis_server(of_outcomes, unused_tcp_port_factory()) as redis,
        ServeCluster(
            tmp_path_factory.mktemp("home"),
            unused_tcp_port_factory(),
            head=HEAD,
            nodes=NODES,
            environment={"RAY_REDIS_ADDRESS": gcs_redis.address},
        ) as cluster,
    ):
        args = settings(folder, redis.url)
        cluster.do("deploy", args=args)
        with httpx.Client(base_url=cluster.url, timeout=60) as client:
            wait_for(lambda: client.get("/ready").status_code == 200, "osd to be ready")
            (model,) = client.get("/v1/models").json()["data"]
        yield Fleet(cluster, redis, args, model["id"], expected)


@pytest.fixture
def fleet(shared_fleet: Fleet) -> Fleet:
    """The fleet that all tests share; each finds it whole."""
    for deployment, num in (("engine", 2), ("ingress", 2), ("distiller", 1), ("supervisor", 1)):
        shared_fleet.cluster.running(deployment, num)
    return shared_fleet
