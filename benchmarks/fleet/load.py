"""Clients that stream greedy answers one after another, while a test does something to the service."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx

_LOOK_S = 0.01


@dataclass(slots=True)
class Answer:
    """One query, as its client saw it."""

    prompt: str
    text: str = ""
    num_tokens: int = 0
    longest_pause_s: float = 0.0
    num_attempts: int = 1
    error: str = ""


@dataclass(slots=True)
class StreamingLoad:
    """What the clients got so far."""

    num_clients: int
    answers: list[Answer] = field(default_factory=list)
    """Finished queries."""
    num_open: int = 0
    """Queries whose first token has come."""

    def wait_for_answers(self, num: int, patience_s: float = 180.0) -> None:
        """Wait until so many queries are finished. Raises TimeoutError."""
        self._wait(lambda: len(self.answers) >= num, f"{num} answers", patience_s)

    def wait_until_all_stream(self, patience_s: float = 180.0) -> None:
        """Wait until every client has the beginning of an answer. Raises TimeoutError."""
        self._wait(lambda: self.num_open == self.num_clients, "every client's answer to have begun", patience_s)

    @staticmethod
    def _wait(condition: Callable[[], bool], what: str, patience_s: float) -> None:
        deadline_s = time.monotonic() + patience_s
        while not condition():
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"waited {patience_s:g} s for {what}")
            time.sleep(_LOOK_S)

    def lost(self, expected: dict[str, str]) -> list[Answer]:
        """Queries that failed, or whose answer is not the expected one."""
        return [one for one in self.answers if one.error or one.text != expected[one.prompt]]


def stream(client: httpx.Client, prompt: str, num_tokens: int, model: str, load: StreamingLoad) -> Answer:
    """One streamed answer."""
    answer = Answer(prompt)
    asked = {
        "model": model,
        "prompt": prompt,
        "max_tokens": num_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    is_open = is_whole = False
    last_s = time.monotonic()
    try:
        with client.stream("POST", "/v1/completions", json=asked) as response:
            if response.status_code != 200:
                response.read()
                raise httpx.HTTPError(f"{response.status_code}: {response.text}")
            for line in response.iter_lines():
                now_s = time.monotonic()
                answer.longest_pause_s, last_s = max(answer.longest_pause_s, now_s - last_s), now_s
                if not line.startswith("data: "):
                    continue
                if line == "data: [DONE]":
                    is_whole = True
                    break
                event = json.loads(line.removeprefix("data: "))
                if "error" in event:
                    raise httpx.HTTPError(str(event["error"]))
                answer.text += "".join(choice["text"] for choice in event["choices"])
                answer.num_tokens = (event.get("usage") or {}).get("completion_tokens", answer.num_tokens)
                if not is_open:
                    is_open = True
                    load.num_open += 1
        if not is_whole:
            answer.error = "the stream ended early"
    except httpx.HTTPError as error:
        answer.error = f"{type(error).__name__}: {error}"
    finally:
        load.num_open -= is_open
    return answer


@contextmanager
def streaming_load(
    url: str, model: str, prompts: Sequence[str], num_tokens: int, num_clients: int, *, retries: int = 0
) -> Iterator[StreamingLoad]:
    """Clients that ask one prompt after another; on exit each finishes its query, and no new one is asked.

    Args:
        url: of the service.
        model: its name there.
        prompts: asked in turn.
        num_tokens: of each answer.
        num_clients: queries at a time.
        retries: how often a client asks again after its connection was cut, as the official clients do.
    """
    load, stopping, lock = StreamingLoad(num_clients), threading.Event(), threading.Lock()
    turns = iter(range(1 << 30))

    def run() -> None:
        with httpx.Client(base_url=url, timeout=240) as client:
            while not stopping.is_set():
                with lock:
                    prompt = prompts[next(turns) % len(prompts)]
                for attempt in range(retries + 1):
                    answer = stream(client, prompt, num_tokens, model, load)
                    answer.num_attempts = attempt + 1
                    if not answer.error:
                        break
                load.answers.append(answer)

    clients = [threading.Thread(target=run) for _ in range(num_clients)]
    for one in clients:
        one.start()
    try:
        yield load
    finally:
        stopping.set()
        for one in clients:
            one.join()
