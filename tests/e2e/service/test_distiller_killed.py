"""The trainer's process is killed in the middle of a step: serving does not notice, and nothing learnt is lost."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from osd.config.paths import checkpoint_dir
from tests.e2e.conftest import PROMPTS, Service
from tests.kit.waiting import wait_for
from trainer.loop.checkpoint import CheckpointFolder

pytestmark = [pytest.mark.ray, pytest.mark.redis, pytest.mark.timeout(240)]


def _ask_all(service: Service) -> None:
    for prompt in PROMPTS:
        service.answer(prompt)


def _trainer(service: Service) -> dict[str, Any]:
    trainer: dict[str, Any] | None = service.status()["trainer"]
    return trainer or {"steps": 0, "trained_tokens": 0, "state": "away", "gate": {}}


@pytest.mark.slow
def test_it_resumes_from_its_checkpoint(service: Service) -> None:

    def trained_and_gated() -> bool:
        # Which outcomes are held out is drawn with their ids: it takes as many queries as it takes.
        _ask_all(service)
        return _trainer(service)["steps"] > 12 and bool(_trainer(service)["gate"])

    wait_for(trained_and_gated, "training and a gate")  # a gate attempt is followed by a checkpoint
    before = _trainer(service)
    resolved, config = service.topology.resolved, service.topology.config
    saved = CheckpointFolder(checkpoint_dir(config.state_dir, resolved.target_id, config.drafter.kind)).load()
    assert saved is not None
    pid = service.pid("distiller")
    os.kill(pid, signal.SIGKILL)
    undisturbed = service.answer(PROMPTS[0])
    assert undisturbed.usage.completion_tokens == 40
    assert service.pid("distiller") != pid
    wait_for(lambda: _trainer(service)["steps"] > 0, "the trainer to be back")
    # At most the steps since the last gate attempt are done again; from nothing it would start at one.
    resumed = _trainer(service)
    assert resumed["steps"] >= before["steps"] - 5 - 1
    assert resumed["trained_tokens"] >= saved.progress["trained_tokens"] > 0
    wait_for(lambda: service.status()["restarts"]["distiller"] >= 1, "the supervisor to count the restart")

    def published() -> list[dict[str, Any]]:
        _ask_all(service)  # a trainer that has trained enough on all that there is waits for more
        # Whatever the gate says: what other tests asked, and a random target answered, may be what it rightly goes by.
        # Asked for again, since a new process leaves alone what was asked before it first asked.
        service.admin.post("/admin/api/publish", json={}).raise_for_status()
        return service.events("publish")  # the log is the new process's own

    wait_for(published, "a version to be published by the new process")


@pytest.mark.slow
def test_a_pause_outlives_the_process(service: Service) -> None:
    service.train(paused=True)
    try:
        wait_for(lambda: _trainer(service)["state"] == "paused", "the pause")
        steps, pid = _trainer(service)["steps"], service.pid("distiller")
        os.kill(pid, signal.SIGKILL)
        assert service.pid("distiller") != pid
        wait_for(lambda: _trainer(service)["state"] == "paused", "the pause after the restart")
        assert _trainer(service)["steps"] <= steps
    finally:
        service.train(paused=False)
    wait_for(lambda: _trainer(service)["state"] != "paused", "training to be resumed")
