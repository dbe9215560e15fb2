"""The engine's process is killed in the middle of answers: clients see a pause, not an error."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.e2e.conftest import PROMPTS, Service, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.redis, pytest.mark.timeout(240)]


def test_streams_go_on_where_the_engine_died(service: Service) -> None:
    undisturbed = [service.answer(prompt, 180).choices[0].text for prompt in PROMPTS[:3]]
    pid, restarts = service.pid("engine"), service.status()["restarts"]["engine"]
    streams = [service.stream(prompt, 180) for prompt in PROMPTS[:3]]
    firsts = [next(stream) for stream in streams]
    os.kill(pid, signal.SIGKILL)
    texts, usages = [], []
    for first, stream in zip(firsts, streams, strict=True):
        chunks = [first, *stream]
        texts.append("".join(chunk.choices[0].text for chunk in chunks if chunk.choices))
        usages.append(chunks[-1].usage.completion_tokens)
    assert texts == undisturbed
    assert usages == [180] * 3
    assert service.pid("engine") != pid
    wait_for(lambda: service.status()["restarts"]["engine"] == restarts + 1, "the supervisor to count the restart")
    assert any("engine was restarted" in event["message"] for event in service.events("restart"))


def test_a_query_that_comes_while_the_engine_is_down_is_answered(service: Service) -> None:
    undisturbed = service.answer(PROMPTS[3], 60).choices[0].text
    pid = service.pid("engine")
    os.kill(pid, signal.SIGKILL)
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda _: service.answer(PROMPTS[3], 60), range(3)))
    assert [answer.choices[0].text for answer in answers] == [undisturbed] * 3
    assert service.pid("engine") != pid
