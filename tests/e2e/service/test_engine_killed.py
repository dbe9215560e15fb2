"""The engine's process is killed in the middle of answers: clients see a pause, not an error."""

from __future__ import annotations

import os
import signal
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from tests.e2e.conftest import PROMPTS, Service
from tests.e2e.service.cut_streams import assert_streams_survive
from tests.kit.waiting import wait_for

pytestmark = [pytest.mark.ray, pytest.mark.redis, pytest.mark.timeout(240)]
_TOKENS = 900


def test_streams_go_on_where_the_engine_died_and_queries_that_come_meanwhile_are_answered(service: Service) -> None:
    late: list[Future[Any]] = []

    def kill_and_wait() -> None:
        pid = service.pid("engine")
        os.kill(pid, signal.SIGKILL)
        late.extend(pool.submit(service.answer, PROMPTS[3], 60) for _ in range(3))
        # The new process answers before it has imported torch and loaded the target.
        assert service.pid("engine") != pid

    restarts = service.status()["restarts"]["engine"]
    undisturbed = service.answer(PROMPTS[3], 60).choices[0].text
    with ThreadPoolExecutor(3) as pool:
        assert_streams_survive(service, _TOKENS, kill_and_wait)
        assert [one.result(240).choices[0].text for one in late] == [undisturbed] * len(late)
    wait_for(lambda: service.status()["restarts"]["engine"] > restarts, "the supervisor to count the restart")
    assert any("engine was restarted" in event["message"] for event in service.events("restart"))
