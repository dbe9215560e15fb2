"""Loads any OpenAI-compatible server with streamed chat queries: closed loop, or open loop with Poisson arrivals."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
from openai import AsyncOpenAI, OpenAIError
from openai.types import CompletionUsage

from osd.text.prompt_file import Messages


@dataclass(frozen=True, slots=True)
class Answer:
    """One query as measured by its client."""

    ttft_s: float
    """From the request to the first piece of text."""
    total_s: float
    output_tokens: int
    queue_s: float = float("nan")
    """Time that the query waited for a row, if the server reports it; part of `ttft_s`."""
    text: str = ""
    prompt_tokens: int = 0
    cached_tokens: int | None = None
    """Prompt tokens taken from the KV cache, if the server reports it."""

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

    def percentile_ms(self, figure: str, percent: float) -> float:
        """A percentile of `ttft_s`, `tpot_s` or `queue_s`; NaN if no answer has that figure."""
        values = [value for answer in self.answers if not math.isnan(value := getattr(answer, figure))]
        return float(np.percentile(values, percent)) * 1e3 if values else float("nan")


class Load:
    """Asks one server.

    Args:
        url: the server's URL without /v1.
        model: None takes the first that the server lists.
        prompts: asked in turn, cyclically.
        max_tokens: longest answer.
        extra_body: further fields of every request.
    """

    def __init__(
        self,
        url: str,
        prompts: Sequence[Messages],
        *,
        model: str | None = None,
        max_tokens: int,
        extra_body: dict[str, object] | None = None,
    ) -> None:
        self._client = AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=600)
        self._prompts, self._max_tokens, self._model, self._extra = prompts, max_tokens, model, extra_body
        self._numbers = count()

    async def __aenter__(self) -> Load:
        """Return self; leaving the context closes the connections while their event loop still runs."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """See `__aenter__`."""
        await self._client.close()

    async def closed(self, clients: int, queries: int) -> LoadResult:
        """Closed loop: each of the clients asks again as soon as it is answered."""
        left = iter(range(queries))
        answers: list[Answer | None] = []

        async def client() -> None:
            for _ in left:
                answers.append(await self.ask(self._next()))

        started_s = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(clients)))
        return self._result(f"{clients} client{'s' * (clients != 1)}", answers, started_s)

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
        if self._model is None:
            self._model = (await self._client.models.list()).data[0].id
        started_s, first_s, queue_s = time.perf_counter(), 0.0, float("nan")
        pieces: list[str] = []
        usage: CompletionUsage | None = None
        try:
            stream = await self._client.chat.completions.create(  # type: ignore[call-overload]  # messages are plain dictionaries here
                model=self._model,
                messages=messages,
                max_tokens=self._max_tokens,
                temperature=0,
                stream=True,
                stream_options={"include_usage": True},
                extra_body=self._extra,
            )
            async for chunk in stream:
                if chunk.choices and not first_s:
                    first_s = time.perf_counter()
                pieces += [choice.delta.content or "" for choice in chunk.choices]
                usage = chunk.usage or usage
                if own := (chunk.model_extra or {}).get("osd"):
                    queue_s = own["queue_ms"] / 1e3
        except OpenAIError:
            return None
        ended_s = time.perf_counter()
        details = usage.prompt_tokens_details if usage else None
        return Answer(
            ttft_s=(first_s or ended_s) - started_s,
            total_s=ended_s - started_s,
            output_tokens=usage.completion_tokens if usage else 0,
            queue_s=queue_s,
            text="".join(pieces),
            prompt_tokens=usage.prompt_tokens if usage else 0,
            cached_tokens=details.cached_tokens if details else None,
        )
