"""A Ray cluster of three nodes on this machine, with osd deployed to it: tiny models, a real Redis."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.fleet.cluster import ServeCluster
from benchmarks.fleet.faults import HEAD, NODES, PLACEMENT, WHOLE
from benchmarks.fleet.load import StreamingLoad, streaming_load
from benchmarks.fleet.redis_server import RedisServer
from osd.assembly.engine import open_engine
from osd.config.settings import load_config
from osd.records.query import SamplingParams
from tests.kit.saved_models import save_llama
from tests.kit.waiting import PATIENCE_S, wait_for

pytest.importorskip("ray.serve", reason="not installed (osd[serve])", exc_type=ImportError)
ADMIN_TOKEN = "an admin token"
PROMPTS = ["the sea is", "list three fruits", "def add(a, b):", "once upon a time", "12 + 30 =", "hello, who are you"]
NUM_TOKENS, NUM_CLIENTS = 300, 6


@dataclass
class Fleet:
    """osd in a cluster."""

    cluster: ServeCluster
    redis: RedisServer | None
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
            load.wait_until_all_stream()
            yield load
        assert not load.lost(self.expected)
        assert {one.num_tokens for one in load.answers} == {NUM_TOKENS}


def settings(folder: Path, redis_url: str, **sections: dict[str, Any]) -> dict[str, Any]:
    """osd's settings for a tiny target whose engines may be on any node."""
    values: dict[str, Any] = {
        "state_dir": str(folder / "state"),
        "target": {"model": str(folder / "tiny"), "dtype": "float32", "max_context_tokens": 1024, "threads": 1},
        "engine": {"max_slots": 4, "prefill_chunk_tokens": 32},
        "drafter": {"vocab_tokens": 128},
        "outcomes": {"redis_url": redis_url},
        "server": {"admin_token_sha256": hashlib.sha256(ADMIN_TOKEN.encode()).hexdigest()},
        "cluster": {**PLACEMENT, "min_engines": 2, "max_engines": 2, "health_interval_s": 1},
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    return values


def reference_answers(folder: Path) -> dict[str, str]:
    """Prompt to the greedy answer of the tiny target in this folder, without speculation."""
    plain = settings(folder, "", outcomes={"enabled": False}, speculation={"enabled": False})
    engine = open_engine(load_config(flags={**plain, "state_dir": folder / "reference", "cluster": {}}))
    expected = dict.fromkeys(PROMPTS, "")
    params = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True)
    for delta in engine.generate(PROMPTS, params):
        expected[PROMPTS[int(delta.request_id)]] += delta.text
    return expected


def deployed(cluster: ServeCluster, args: dict[str, Any]) -> str:
    """Deploy osd, and wait until it is ready; returns the target's name."""
    cluster.do("deploy", args=args)
    with httpx.Client(base_url=cluster.url, timeout=60) as client:
        wait_for(lambda: client.get("/ready").status_code == 200, "osd to be ready")
        (model,) = client.get("/v1/models").json()["data"]
    name: str = model["id"]
    return name


@pytest.fixture(scope="package")
def shared_fleet(tmp_path_factory: pytest.TempPathFactory, unused_tcp_port_factory: Any) -> Iterator[Fleet]:
    """Started once, because that takes long. Ray's GCS keeps its state in a Redis, the outcomes are in another."""
    folder = tmp_path_factory.mktemp("cluster")
    save_llama(folder / "tiny", context_tokens=1024)
    of_ray, of_outcomes = (tmp_path_factory.mktemp("redis") for _ in range(2))
    with ThreadPoolExecutor(1) as beside:
        expected = beside.submit(reference_answers, folder)  # while the nodes start
        with (
            RedisServer(of_ray, unused_tcp_port_factory()) as gcs_redis,
            RedisServer(of_outcomes, unused_tcp_port_factory()) as redis,
            ServeCluster(
                tmp_path_factory.mktemp("home"),
                unused_tcp_port_factory(),
                head=HEAD,
                nodes=NODES,
                environment={"RAY_REDIS_ADDRESS": gcs_redis.address},
            ) as cluster,
        ):
            args = settings(folder, redis.url)
            yield Fleet(cluster, redis, args, deployed(cluster, args), expected.result(PATIENCE_S))


@pytest.fixture
def fleet(shared_fleet: Fleet) -> Fleet:
    """The fleet that all tests share; each finds it whole."""
    for deployment, num in WHOLE.items():
        shared_fleet.cluster.running(deployment, num)
    return shared_fleet
