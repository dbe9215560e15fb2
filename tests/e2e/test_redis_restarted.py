"""Redis hangs, is killed and comes back: serving does not notice, and every outcome arrives."""

from __future__ import annotations

import os
import signal

import pytest

from tests.e2e.conftest import PROMPTS, Service, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.redis, pytest.mark.timeout(240)]


def _counts(service: Service) -> dict[str, float]:
    counters = service.status()["engine"]["counters"]
    return {name: counters[f"outcomes_{name}"] for name in ("recorded", "spilled", "replayed", "dropped")}


def test_outcomes_spill_and_are_replayed(service: Service) -> None:
    service.answer(PROMPTS[0])
    wait_for(lambda: _counts(service)["recorded"] >= 1, "the first outcome to be recorded")
    before = _counts(service)
    redis = service.topology.redis
    assert redis is not None and redis.pid is not None
    os.kill(redis.pid, signal.SIGSTOP)  # it hangs: worse than being away
    answers = [service.answer(prompt) for prompt in PROMPTS]
    assert all(answer.usage.completion_tokens == 40 for answer in answers)
    wait_for(lambda: _counts(service)["spilled"] > before["spilled"], "an outcome to be spilled")
    os.kill(redis.pid, signal.SIGKILL)
    wait_for(lambda: redis.pid is not None, "redis-server to be started again")
    wait_for(
        lambda: _counts(service)["recorded"] == before["recorded"] + len(PROMPTS), "every outcome to be in the stream"
    )
    after = _counts(service)
    assert after["dropped"] == before["dropped"]
    assert after["replayed"] - before["replayed"] == after["spilled"] - before["spilled"] > 0


def test_an_opted_out_query_leaves_no_outcome(service: Service) -> None:
    before = _counts(service)["recorded"]
    service.answer(PROMPTS[1], store=False)
    service.answer(PROMPTS[2])
    wait_for(lambda: _counts(service)["recorded"] == before + 1, "the other query's outcome")
