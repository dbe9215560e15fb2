"""One real service for all tests of this folder: Ray, Redis, actors, HTTP, a tiny random target, quick training."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from openai import OpenAI

from actors.calls.handle import ActorAwayError
from actors.service.topology import Topology, start
from osd.config.settings import Config, load_config
from osd.io.codec import decode
from osd.io.weight_store import FileWeightStore
from osd.records.outcome import Outcome
from osd.text.codec import TextCodec
from serving.app import create_app
from tests.kit.http_server import serve
from tests.kit.saved_models import save_llama
from tests.kit.stores import weights_dir
from tests.kit.waiting import wait_for

ADMIN_TOKEN = "an admin token"
PROMPTS = ["the sea is", "list three fruits", "def add(a, b):", "once upon a time", "12 + 30 =", "hello, who are you"]


@dataclass
class Server:
    """A running server, and the ways in that tests use."""

    url: str
    model: str

    def __post_init__(self) -> None:
        self.openai = OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=120)
        self.admin = httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {ADMIN_TOKEN}"}, timeout=60)

    def stream(self, prompt: str, max_tokens: int, **extra: Any) -> Any:
        """A greedy streamed completion that does not end by itself."""
        return self.openai.completions.create(
            model=self.model,
            prompt=prompt,
            max_tokens=max_tokens,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True, **extra},
        )

    def answer(self, prompt: str, max_tokens: int = 40, **extra: Any) -> Any:
        """The same, whole."""
        return self.openai.completions.create(
            model=self.model,
            prompt=prompt,
            max_tokens=max_tokens,
            temperature=0,
            extra_body={"ignore_eos": True, **extra},
        )

    def status(self) -> dict[str, Any]:
        """What the admin page sees."""
        response = self.admin.get("/admin/api/status")
        response.raise_for_status()
        body: dict[str, Any] = response.json()
        return body

    def outcome_counts(self) -> dict[str, float]:
        """What became of the outcomes since the engine started."""
        counters = self.status()["engine"]["counters"]
        return {name: counters[f"outcomes_{name}"] for name in ("recorded", "spilled", "replayed", "dropped")}

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Events of one kind, oldest first."""
        body = self.admin.get("/admin/api/events").json()
        return [event for event in (body["events"] if isinstance(body, dict) else body) if event["kind"] == kind]

    def train(self, paused: bool) -> None:
        """Pause or resume training."""
        self.admin.post(f"/admin/api/{'pause' if paused else 'resume'}", json={}).raise_for_status()

    def acceptance(self, **extra: Any) -> float:
        """Acceptance rate of one proposed token a round, over all prompts, with what serves now."""
        figures = [self.answer(prompt, osd={"speculation_length": 1}, **extra).osd for prompt in PROMPTS]
        return float(sum(f["accepted"] for f in figures) / sum(f["proposed"] for f in figures))


@dataclass
class Service(Server):
    """A server in this process, whose actors tests may get hold of."""

    topology: Topology
    untrained_acceptance: float = 0.0

    def outcomes(self) -> list[Outcome]:
        """Those that the stream holds, read by the trainer or not."""
        assert self.topology.redis is not None
        with redis.Redis.from_url(self.topology.redis.url) as client:
            entries: Any = client.xrange(self.topology.config.outcomes.stream)
        return [decode(fields[b"outcome"]) for _, fields in entries]

    def store(self) -> FileWeightStore:
        """Its drafter's versions."""
        folder = weights_dir(self.topology.config.state_dir, self.topology.resolved.target_id, "feature")
        return FileWeightStore(folder)

    def pid(self, actor: str) -> int:
        """Process id of an actor; waits while it restarts."""

        def ask() -> int | None:
            try:
                return int(self.topology.driver.handle(actor).call("ping").result(5))
            except (ActorAwayError, TimeoutError):
                return None

        return wait_for(ask, f"{actor} to answer")


def service_config(state_dir: Path, target: Path | str, **sections: dict[str, Any]) -> Config:
    """Quick to learn, on little data."""
    trainer = {
        "nice": 0,  # at the lowest priority it gets nothing for as long as tests beside it keep all cores busy
        "max_utilisation": 1.0,
        "min_records": 4,
        "held_out_share": 0.3,
        "gate_every_steps": 5,
        "learning_rate": 3e-3,
        "warmup_steps": 5,
    }
    values: dict[str, Any] = {
        "state_dir": state_dir,
        "target": {"model": str(target), "dtype": "float32", "max_context_tokens": 4096, "threads": 1},
        "engine": {"max_slots": 4, "prefill_chunk_tokens": 32},
        # The lookup would give the answers of earlier queries again, and so hide whether the drafter has learnt.
        "drafter": {"vocab_tokens": 128, "suffix": False},
        "swap": {"poll_interval_s": 0.1},
        "cluster": {"report_interval_s": 0.2},
        "server": {"admin_token_sha256": hashlib.sha256(ADMIN_TOKEN.encode()).hexdigest()},
        "trainer": trainer,
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    return load_config(None, values)


def run_service(config: Config) -> Iterator[Service]:
    """Start, yield, stop."""
    with start(config) as topology:
        resolved = topology.resolved
        codec = TextCodec.open(resolved.folder, resolved.target_id, config.target.max_context_tokens)
        app = create_app(config, topology.client, codec, admin_token_sha256=config.server.admin_token_sha256)
        with serve(app) as url:
            service = Service(url, resolved.target_id, topology)
            with service.openai, service.admin:
                service.untrained_acceptance = service.acceptance(store=False)  # nothing can be learnt from these
                yield service


@pytest.fixture(scope="package")
def shared_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Started once, because that takes several seconds."""
    folder = tmp_path_factory.mktemp("e2e")
    yield from run_service(service_config(folder / "state", save_llama(folder / "tiny", context_tokens=4096)))


@pytest.fixture
def service(shared_service: Service) -> Iterator[Service]:
    """The service that the kill tests share; each leaves it whole, and idle until the next one."""
    shared_service.train(paused=False)
    yield shared_service
    shared_service.train(paused=True)
