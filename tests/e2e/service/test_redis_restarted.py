"""Redis hangs, is killed and comes back: serving does not notice, and every outcome arrives."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.server import osd_server
from osd.io.embedded_redis import EmbeddedRedis
from tests.e2e.conftest import ADMIN_TOKEN, PROMPTS, Server, Service
from tests.kit.saved_models import save_llama
from tests.kit.waiting import wait_for

pytestmark = [pytest.mark.ray, pytest.mark.redis, pytest.mark.timeout(360)]


def _trainer(server: Server) -> dict[str, Any]:
    trainer: dict[str, Any] | None = server.status()["trainer"]
    return trainer or {"replay_records": 0, "held_out_records": 0, "stream_lag": None, "message": "away"}


def _has_read_all(server: Server) -> bool:
    trainer = _trainer(server)
    return trainer["stream_lag"] == 0 and "away" not in trainer["message"]


def test_outcomes_spill_and_are_replayed(service: Service) -> None:
    service.answer(PROMPTS[0])
    wait_for(lambda: service.outcome_counts()["recorded"] >= 1, "the first outcome to be recorded")
    before = service.outcome_counts()
    server = service.topology.redis
    assert server is not None and server.pid is not None
    os.kill(server.pid, signal.SIGSTOP)  # it hangs: worse than being away
    answers = [service.answer(prompt) for prompt in PROMPTS]
    assert all(answer.usage.completion_tokens == 40 for answer in answers)
    wait_for(lambda: service.outcome_counts()["spilled"] > before["spilled"], "an outcome to be spilled")
    os.kill(server.pid, signal.SIGKILL)
    wait_for(lambda: server.pid is not None, "redis-server to be started again")
    wait_for(
        lambda: service.outcome_counts()["recorded"] == before["recorded"] + len(PROMPTS),
        "every outcome to be in the stream",
    )
    after = service.outcome_counts()
    assert after["dropped"] == before["dropped"]
    assert after["replayed"] - before["replayed"] == after["spilled"] - before["spilled"] > 0
    wait_for(lambda: _has_read_all(service), "the trainer to read the stream again")


def test_an_opted_out_query_leaves_no_outcome(service: Service) -> None:
    before = service.outcome_counts()["recorded"]
    private, public = service.answer(PROMPTS[1], store=False), service.answer(PROMPTS[2])
    wait_for(lambda: service.outcome_counts()["recorded"] == before + 1, "the other query's outcome")
    ids = [outcome.request_id for outcome in service.outcomes()]
    assert any(public.id in one for one in ids)
    assert not any(private.id in one for one in ids)


@pytest.fixture
def external(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    """A Redis that osd neither started nor starts again."""
    server = EmbeddedRedis(tmp_path / "redis", max_memory_bytes=128 << 20)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.mark.slow
def test_an_external_redis_that_is_restarted(
    external: EmbeddedRedis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def taught() -> int:
        trainer = _trainer(server)
        return int(trainer["replay_records"] + trainer["held_out_records"])

    monkeypatch.setenv("OSD_ADMIN_TOKEN", ADMIN_TOKEN)
    flags = ["--target", str(save_llama(tmp_path / "tiny")), "--max-context-tokens", "256", "--threads", "1"]
    with osd_server(tmp_path / "state", tmp_path / "log", [*flags, "--redis-url", external.url]) as url:
        server = Server(url, "tiny")
        with server.openai, server.admin:
            for prompt in PROMPTS:
                server.answer(prompt)
            wait_for(lambda: taught() == len(PROMPTS), "the trainer to have every outcome")
            assert external.pid is not None
            os.kill(external.pid, signal.SIGKILL)
            for prompt in PROMPTS:
                assert server.answer(prompt).usage.completion_tokens == 40
            server.answer(PROMPTS[0], store=False)
            wait_for(lambda: server.outcome_counts()["spilled"] > 0, "an outcome to be spilled")
            wait_for(lambda: "away" in _trainer(server)["message"], "the trainer to notice")
            assert external.ensure_running()
            wait_for(lambda: taught() == 2 * len(PROMPTS), "the trainer to have the outcomes of the meantime")
            counts = server.outcome_counts()
    assert counts["recorded"] == 2 * len(PROMPTS)
    assert counts["dropped"] == 0
    assert counts["replayed"] == counts["spilled"] > 0
