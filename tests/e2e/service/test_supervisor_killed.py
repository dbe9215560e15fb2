"""The supervisor's process is killed: only its reports depend on it, and what the operator wants is not lost."""

from __future__ import annotations

import os
import signal

import pytest

from tests.e2e.conftest import PROMPTS, Service
from tests.kit.waiting import wait_for

pytestmark = [pytest.mark.ray, pytest.mark.redis, pytest.mark.timeout(240)]


def _state(service: Service) -> str:
    return str((service.status()["trainer"] or {"state": "away"})["state"])


def _wish(service: Service) -> bool | None:
    """What the supervisor believes that the operator wants; None: it was not told since its start."""
    wish: bool | None = service.topology.driver.handle("supervisor").call("training_is_paused").result(5)
    return wish


def test_a_pause_outlives_the_supervisor(service: Service) -> None:
    service.train(paused=True)
    wait_for(lambda: _state(service) == "paused", "the pause")
    pid = service.pid("supervisor")
    os.kill(pid, signal.SIGKILL)
    assert service.answer(PROMPTS[0]).usage.completion_tokens == 40
    assert service.pid("supervisor") != pid
    wait_for(lambda: _wish(service) is not None, "the distiller to ask the new supervisor")
    assert _wish(service) is True
    assert _state(service) == "paused"
    wait_for(lambda: {"engine", "distiller", "supervisor", "ray"} <= service.status()["processes"].keys(), "its report")
    service.train(paused=False)
    wait_for(lambda: _state(service) != "paused", "training to be resumed")
