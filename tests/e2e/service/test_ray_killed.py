"""Ray's own processes are killed in the middle of answers: clients see a pause, and the HTTP process lives on."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
import psutil
import pytest

from actors.process.session import session_processes
from tests.e2e.conftest import PROMPTS, Service
from tests.e2e.service.cut_streams import assert_streams_survive
from tests.kit.waiting import wait_for

pytestmark = [pytest.mark.ray, pytest.mark.redis, pytest.mark.slow, pytest.mark.timeout(280)]
_TOKENS = 900
"""A second and more of decoding: Ray's death is noticed within a fraction of that."""


def ray_process(service: Service, name: str) -> psutil.Process:
    """One of Ray's processes; "driver" is the one that speaks with the HTTP process, this one."""
    driver = service.topology.driver.pid
    assert driver is not None
    if name == "driver":
        return psutil.Process(driver)
    [found] = [process for process in session_processes(driver) if process.name() == name]
    return found


@pytest.mark.parametrize("name", ["gcs_server", "raylet", "driver"])
def test_streams_go_on_where_ray_died(service: Service, name: str) -> None:
    undisturbed = service.answer(PROMPTS[0], _TOKENS).choices[0].text
    restarts = service.status()["restarts"]["ray"]
    old: list[psutil.Process] = []
    late: list[Future[Any]] = []

    def kill_and_wait() -> None:
        session = service.topology.driver.pid
        assert session is not None
        old.extend(session_processes(session))
        ray_process(service, name).kill()
        wait_for(lambda: service.topology.driver.pid != session, "the death to be noticed")
        late.append(pool.submit(service.answer, PROMPTS[0], _TOKENS))
        assert httpx.get(f"{service.url}/health").status_code == 200
        ready = httpx.get(f"{service.url}/ready")
        assert ready.status_code == 503 and int(ready.headers["Retry-After"]) > 0

    with ThreadPoolExecutor(1) as pool:
        assert_streams_survive(service, _TOKENS, kill_and_wait)
        assert [one.result(240).choices[0].text for one in late] == [undisturbed] * len(late)
    assert httpx.get(f"{service.url}/ready").status_code == 200
    assert service.status()["restarts"]["ray"] == restarts + len(late)
    assert any("Ray is started again" in event["message"] for event in service.events("restart"))
    assert not any(one.is_running() for one in old), "what the dead Ray left is gone"


def test_a_pause_outlives_ray(service: Service) -> None:
    def state() -> str:
        return str((service.status()["trainer"] or {"state": "away"})["state"])

    service.train(paused=True)
    wait_for(lambda: state() == "paused", "the pause")
    restarts = service.status()["restarts"]["ray"]
    ray_process(service, "raylet").kill()
    wait_for(lambda: service.status()["restarts"]["ray"] == restarts + 1 and state() != "away", "Ray to be back")
    wait_for(lambda: state() == "paused", "the pause after the restart")
    service.train(paused=False)
    wait_for(lambda: state() != "paused", "training to be resumed")
