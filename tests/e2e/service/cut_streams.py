"""Streams that are cut by a kill, and go on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from tests.e2e.conftest import PROMPTS, Service

_ATTEMPTS = 3
_PROMPTS = PROMPTS[:3]


def assert_streams_survive(service: Service, num_tokens: int, kill_and_wait: Callable[[], None]) -> None:
    """Three clients read while something is killed; each gets the whole answer that it gets without that.

    On a machine that is quick, or that lets this process wait, all answers may have been sent before the kill: then
    another three are cut, of twice the length.

    Args:
        service: serves them.
        num_tokens: of each answer, at first.
        kill_and_wait: kills, and returns once nobody can serve, which must be long before somebody can again.
    """
    for length in (num_tokens << attempt for attempt in range(_ATTEMPTS)):
        undisturbed = [service.answer(prompt, length).choices[0].text for prompt in _PROMPTS]
        all_begun = threading.Barrier(len(_PROMPTS) + 1)

        def read(prompt: str, length: int = length, all_begun: threading.Barrier = all_begun) -> tuple[str, int]:
            """(text, number of tokens)."""
            stream = service.stream(prompt, length)
            chunks = [next(stream)]
            all_begun.wait(60)
            chunks.extend(stream)
            text = "".join(chunk.choices[0].text for chunk in chunks if chunk.choices)
            return text, chunks[-1].usage.completion_tokens

        with ThreadPoolExecutor(len(_PROMPTS)) as pool:
            reading = [pool.submit(read, prompt) for prompt in _PROMPTS]
            all_begun.wait(60)
            kill_and_wait()
            was_cut = any(not one.done() for one in reading)
            assert [one.result(240) for one in reading] == [(text, length) for text in undisturbed]
        if was_cut:
            return
    raise AssertionError("no kill came before the end of the answers: they are too short for this machine")
