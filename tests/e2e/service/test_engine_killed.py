"""The engine's process is killed in the middle of answers: clients see a pause, not an error."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.e2e.conftest import PROMPTS, Service
from tests.e2e.service.cut_streams import assert_streams_survive
from tests.kit.waiting import wait_for

pytestmark = [pytest.mark.ray, pytest.mark.redis, pytest.mark.timeout(240)]
_TOKENS = 900


def test_streams_go_on_where_the_engine_died(service: Service) -> None:
    def kill_and_wait() -> None:
        pid = service.pid("engine")
        os.kill(pid, signal.SIGKILL)
        # The new process answers before it has imported torch and loaded the target.
        assert service.pid("engine") != pid

    restarts = service.status()["restarts"]["engine"]
    assert_streams_survive(service, _TOKENS, kill_and_wait)
    wait_for(lambda: service.status()["restarts"]["engine"] > restarts, "the supervisor to count the restart")
    assert any("engine was restarted" in event["message"] for event in service.events("restart"))


def test_a_query_that_comes_while_the_engine_is_down_is_answered(service: Service) -> None:
    undisturbed = service.answer(PROMPTS[3], 60).choices[0].text
    pid = service.pid("engine")
    os.kill(pid, signal.SIGKILL)
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda _: service.answer(PROMPTS[3], 60), range(3)))
    assert [answer.choices[0].text for answer in answers] == [undisturbed] * 3
    assert service.pid("engine") != pid
