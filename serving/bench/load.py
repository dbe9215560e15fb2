"""Loads an OpenAI-compatible server with streamed chat queries: closed loop, or open loop with Poisson arrivals."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
from openai import AsyncOpenAI, OpenAIError
from openai.types import CompletionUsage

from osd.text.prompt_file import Messages

_TIMEOUT_S = 600


class Speculation(NamedTuple):
    """What the server says of speculation in an answer."""

    rounds: int
    """Passes of the target after the first token; vLLM tells only of those that verified proposed tokens."""
    proposed: int
    accepted: int
    committed: int


@dataclass(frozen=True, slots=True)
class Answer:
    """One query as measured by its client."""

    ttft_s: float
    """From the request to the first piece of text."""
    total_s: float
    output_tokens: int
    """0 if the server does not count tokens."""
    queue_s: float = float("nan")
    """Time that the query waited for a row, if the server reports it; part of `ttft_s`."""
    text: str = ""
    prompt_tokens: int = 0
    cached_tokens: int | None = None
    """Prompt tokens taken from the KV cache, if the server reports it."""
    speculation: Speculation | None = None
    """None if the server does not report it."""

    @property
    def tpot_s(self) -> float:
        """Time per output token after the first; NaN if the server does not count tokens."""
        if not self.output_tokens:
            return float("nan")
        return (self.total_s - self.ttft_s) / max(self.output_tokens - 1, 1)


@dataclass(frozen=True, slots=True)
class LoadResult:
    """The answers under one load."""

    label: str
    answers: list[Answer]
    failed: int
    elapsed_s: float

    @property
    def tokens_per_s(self) -> float:
        """Output tokens per second of all clients together."""
        return sum(answer.output_tokens for answer in self.answers) / self.elapsed_s

    @property
    def acceptance_rate(self) -> float:
        """Accepted / proposed tokens of all answers; NaN if nothing was proposed, or the server does not report it."""
        told = self._speculation()
        return told.accepted / told.proposed if told.proposed else float("nan")

    @property
    def acceptance_length(self) -> float:
        """Committed tokens / rounds of all answers; NaN if the server does not report it."""
        told = self._speculation()
        return told.committed / told.rounds if told.rounds else float("nan")

    def percentile_ms(self, figure: str, percent: float) -> float:
        """A percentile of `ttft_s`, `tpot_s` or `queue_s`; NaN if no answer has that figure."""
        values = [value for answer in self.answers if not math.isnan(value := getattr(answer, figure))]
        return float(np.percentile(values, percent)) * 1e3 if values else float("nan")

    def _speculation(self) -> Speculation:
        told = [answer.speculation for answer in self.answers if answer.speculation is not None]
        return Speculation(*map(sum, zip(*told, strict=True))) if told else Speculation(0, 0, 0, 0)


class Load:
    """Asks one server.

    Args:
        url: the server's URL; without a path, `/v1` is added.
        prompts: asked in turn, cyclically.
        model: None takes the first that the server lists.
        max_tokens: longest answer.
        temperature: of every query; 0 is greedy.
        api_key: for a server that asks for one.
        extra_body: further fields of every request.
    """

    def __init__(
        self,
        url: str,
        prompts: Sequence[Messages],
        *,
        model: str | None = None,
        max_tokens: int,
        temperature: float = 0.0,
        api_key: str = "none",
        extra_body: Mapping[str, object] | None = None,
    ) -> None:
        base_url = url if urlsplit(url).path.strip("/") else f"{url.rstrip('/')}/v1"
        self._client = AsyncOpenAI(base_url=base_url, api_key=api_key, max_retries=0, timeout=_TIMEOUT_S)
        self._prompts, self._max_tokens, self._model = prompts, max_tokens, model
        self._temperature, self._extra = temperature, extra_body
        self._numbers = count()
        self.failure = ""
        """Why the last query that failed did so."""

    async def __aenter__(self) -> Load:
        """Return self; leaving the context closes the connections while their event loop still runs."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """See `__aenter__`."""
        await self._client.close()

    async def model(self) -> str:
        """The model that is asked for.

        Raises:
            OpenAIError: none was given, and the server does not list its models.
        """
        if self._model is None:
            self._model = (await self._client.models.list()).data[0].id
        return self._model

    async def in_turn(self, clients: Sequence[int], rates: Sequence[float], queries: int) -> list[LoadResult]:
        """Warm the server up, then put each load on it in turn.

        Args:
            clients: closed loops, by number of clients.
            rates: open loops, in queries a second.
            queries: of each load; a closed loop has at least one a client.
        """
        await self.closed(1, 2)
        results = [await self.closed(number, max(queries, number)) for number in clients]
        return results + [await self.open(rate, queries) for rate in rates]

    async def closed(self, clients: int, queries: int) -> LoadResult:
        """Closed loop: each of the clients asks again as soon as it is answered."""
        left = iter(range(queries))
        answers: list[Answer | None] = []

        async def client() -> None:
            for _ in left:
                answers.append(await self.ask(self._next()))

        started_s = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(clients)))
        return self._result(clients_label(clients), answers, started_s)

    async def open(self, queries_per_s: float, queries: int, seed: int = 0) -> LoadResult:
        """Open loop: queries arrive as a Poisson process, whether or not earlier ones are answered."""
        generator = random.Random(seed)
        started_s = time.perf_counter()
        tasks = []
        for _ in range(queries):
            tasks.append(asyncio.create_task(self.ask(self._next())))
            await asyncio.sleep(generator.expovariate(queries_per_s))
        answers = list(await asyncio.gather(*tasks))
        return self._result(f"{queries_per_s:g} queries/s", answers, started_s)

    def _result(self, label: str, answers: list[Answer | None], started_s: float) -> LoadResult:
        whole = [answer for answer in answers if answer is not None]
        return LoadResult(label, whole, len(answers) - len(whole), time.perf_counter() - started_s)

    def _next(self) -> Messages:
        return self._prompts[next(self._numbers) % len(self._prompts)]

    async def ask(self, messages: Messages) -> Answer | None:
        """One query; None if it failed."""
        started_s, first_s = time.perf_counter(), 0.0
        pieces: list[str] = []
        usage: CompletionUsage | None = None
        told: dict[str, Any] = {}
        try:
            stream = await self._client.chat.completions.create(  # type: ignore[call-overload]  # messages are plain dictionaries here
                model=await self.model(),
                messages=messages,
                max_tokens=self._max_tokens,
                temperature=self._temperature,
                stream=True,
                stream_options={"include_usage": True},
                extra_body=self._extra,
            )
            async for chunk in stream:
                for delta in (choice.delta for choice in chunk.choices):
                    pieces.append(delta.content or "")
                    if not first_s and (delta.content or (delta.model_extra or {}).get("reasoning_content")):
                        first_s = time.perf_counter()
                usage = chunk.usage or usage
                told |= chunk.model_extra or {}
        except OpenAIError as error:
            self.failure = str(error)
            return None
        ended_s = time.perf_counter()
        details = usage.prompt_tokens_details if usage else None
        return Answer(
            ttft_s=(first_s or ended_s) - started_s,
            total_s=ended_s - started_s,
            output_tokens=usage.completion_tokens if usage else 0,
            queue_s=told["osd"]["queue_ms"] / 1e3 if "osd" in told else float("nan"),
            text="".join(pieces),
            prompt_tokens=usage.prompt_tokens if usage else 0,
            cached_tokens=details.cached_tokens if details else None,
            speculation=_speculation(told),
        )


def clients_label(clients: int) -> str:
    """How a closed loop is called in tables."""
    return f"{clients} client{'s' * (clients != 1)}"


def _speculation(told: Mapping[str, Any]) -> Speculation | None:
    """From the `osd` field of an answer, or from vLLM's `metrics`."""
    if own := told.get("osd"):
        return Speculation(own["rounds"], own["proposed"], own["accepted"], own["committed"])
    if figures := (told.get("metrics") or {}).get("speculative_decoding"):
        rounds, accepted = figures["num_spec_steps"], figures["num_accepted_draft_tokens"]
        return Speculation(rounds, figures["num_draft_tokens"], accepted, rounds + accepted)
    return None
