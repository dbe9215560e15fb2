"""Puts load on an engine in this process and thread: queries one at a time, or arriving at set times."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.shape_bench import ShapeBench
from osd.records.query import Request, SamplingParams


@dataclass(slots=True)
class Block:
    """Measurements of several queries."""

    tpots_s: list[float] = field(default_factory=list)
    """By query: seconds per output token, from the step that gave the first token to the one that gave the last."""
    busy_s: float = 0.0
    """Seconds spent in steps."""
    elapsed_s: float = 0.0
    steps: int = 0
    """Training steps made meanwhile."""
    trained_tokens: int = 0

    def add(self, other: Block) -> None:
        """Add another block of the same kind."""
        self.tpots_s += other.tpots_s
        self.busy_s += other.busy_s
        self.elapsed_s += other.elapsed_s
        self.steps += other.steps
        self.trained_tokens += other.trained_tokens


@dataclass(slots=True)
class _Answer:
    """The progress of one query."""

    first_s: float
    """End of the step that gave its first token."""
    decoded: int = 0
    """Tokens of the steps after that."""


class Serving:
    """Submits prompts to an engine, and measures.

    Args:
        bench: the engine; its drafter knows the prompts' answers.
        prompts: token ids.
        num_tokens: length of every answer.
    """

    def __init__(self, bench: ShapeBench, prompts: Sequence[Sequence[int]], num_tokens: int) -> None:
        self._bench, self._prompts, self._num_tokens = bench, prompts, num_tokens
        self._params = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
        self._asked = 0

    def closed(self, seconds: float) -> Block:
        """Closed loop: one query at a time, without pauses."""
        block, started_s = Block(), time.perf_counter()
        while (elapsed_s := time.perf_counter() - started_s) < seconds:
            block.add(self.open([0.0]))
        block.elapsed_s = elapsed_s
        return block

    def open(self, arrivals_s: Sequence[float], seconds: float = 0.0) -> Block:
        """Open loop: queries arrive at set times, whether or not earlier ones are answered.

        Args:
            arrivals_s: seconds from now, ascending.
            seconds: least duration; sleeps after the last answer until then.
        """
        engine, block, waiting = self._bench.engine, Block(), deque(arrivals_s)
        answers: dict[str, _Answer] = {}
        started_s = time.perf_counter()
        while waiting or engine.has_work:
            while waiting and waiting[0] <= time.perf_counter() - started_s:
                waiting.popleft()
                self._ask()
            if not engine.has_work:
                time.sleep(max(started_s + waiting[0] - time.perf_counter(), 0.0))
                continue
            before_s = time.perf_counter()
            deltas = engine.step()
            now_s = time.perf_counter()
            block.busy_s += now_s - before_s
            for delta in deltas:
                answer = answers.setdefault(delta.request_id, _Answer(now_s))
                if now_s > answer.first_s:
                    answer.decoded += len(delta.token_ids)
                if delta.finish_reason:
                    block.tpots_s.append((now_s - answer.first_s) / answer.decoded)
        time.sleep(max(started_s + seconds - time.perf_counter(), 0.0))
        block.elapsed_s = time.perf_counter() - started_s
        return block

    def _ask(self) -> None:
        prompt = tuple(self._prompts[self._asked % len(self._prompts)])
        self._bench.engine.submit(
            Request(
                request_id=str(self._asked),
                prompt_ids=prompt,
                params=self._params,
                speculation_length=self._bench.length,
            )
        )
        self._asked += 1
