"""The supervisor's process is killed: only its reports depend on it, and what the operator wants is not lost."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.e2e.conftest import PROMPTS, Service, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.redis, pytest.mark.timeout(240)]
_SEVERAL_QUESTIONS_S = 2.0
"""The distiller asks every half a second what the operator wants."""


def _state(service: Service) -> str:
    return str((service.status()["trainer"] or {"state": "away"})["state"])


def test_a_pause_outlives_the_supervisor(service: Service) -> None:
    service.train(paused=True)
    wait_for(lambda: _state(service) == "paused", "the pause")
    pid = service.pid("supervisor")
    os.kill(pid, signal.SIGKILL)
    assert service.answer(PROMPTS[0]).usage.completion_tokens == 40
    assert service.pid("supervisor") != pid
    time.sleep(_SEVERAL_QUESTIONS_S)
    assert _state(service) == "paused"
    wait_for(lambda: {"engine", "distiller", "supervisor", "ray"} <= service.status()["processes"].keys(), "its report")
    service.train(paused=False)
    wait_for(lambda: _state(service) != "paused", "training to be resumed")
