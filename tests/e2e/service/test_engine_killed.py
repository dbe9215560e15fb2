"""The engine's process is killed in the middle of answers: clients see a pause, not an error."""

from __future__ import annotations

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest

from tests.e2e.conftest import PROMPTS, Service
from tests.kit.waiting import wait_for

pytestmark = [pytest.mark.ray, pytest.mark.redis, pytest.mark.timeout(240)]
# Long enough that no answer can end while the others' first tokens are on their way.
_TOKENS = 700


def test_streams_go_on_where_the_engine_died(service: Service) -> None:
    undisturbed = [service.answer(prompt, _TOKENS).choices[0].text for prompt in PROMPTS[:3]]
    pid, restarts = service.pid("engine"), service.status()["restarts"]["engine"]
    all_begun = threading.Barrier(4)

    def read(prompt: str) -> tuple[str, int, float]:
        """(text, number of tokens, longest pause between two chunks)."""
        stream = service.stream(prompt, _TOKENS)
        chunks, came_at_s = [next(stream)], [time.monotonic()]
        all_begun.wait(60)
        for chunk in stream:
            chunks.append(chunk)
            came_at_s.append(time.monotonic())
        text = "".join(chunk.choices[0].text for chunk in chunks if chunk.choices)
        return text, chunks[-1].usage.completion_tokens, max(b - a for a, b in pairwise(came_at_s))

    with ThreadPoolExecutor(3) as pool:
        reading = [pool.submit(read, prompt) for prompt in PROMPTS[:3]]
        all_begun.wait(60)
        os.kill(pid, signal.SIGKILL)
        answers = [one.result(200) for one in reading]
    assert [text for text, _, _ in answers] == undisturbed
    assert [tokens for _, tokens, _ in answers] == [_TOKENS] * 3
    # A new process imports torch and loads the target: a stream that waited for it was cut by the kill.
    assert any(pause_s > 1 for _, _, pause_s in answers), [pause_s for _, _, pause_s in answers]
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
