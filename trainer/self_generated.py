"""Outcomes without users: the target answers prompts itself, and its answers are what the student learns from.

Distilling on the target's own text (sequence-level knowledge distillation, Kim and Rush 2016, arXiv 1606.07947) trains
the student where it will be asked. Here it is an outcome source like the stream: the trainer does not know it apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from osd.engine import Engine
from osd.outcome import Outcome
from osd.types import Request, SamplingParams


class Collector:
    """An outcome recorder that keeps outcomes until they are taken."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []

    def record(self, make: Callable[[], Outcome]) -> None:
        """Keep one."""
        self.outcomes.append(make())

    def counters(self) -> dict[str, int]:
        """Nothing is lost here."""
        return {}

    def take(self) -> list[Outcome]:
        """All kept since the last call."""
        taken, self.outcomes = self.outcomes, []
        return taken


class SelfGenerated:
    """An outcome source over an engine that this thread owns.

    Args:
        engine: records into `collector`.
        collector: its recorder.
        prompts: token ids.
        num_answers: how many answers to make; beyond the first of each prompt, further ones are sampled.
        max_tokens: longest answer.
        wants_more: False while the trainer is busy with what it has.
    """

    def __init__(
        self,
        engine: Engine,
        collector: Collector,
        prompts: Sequence[tuple[int, ...]],
        *,
        num_answers: int,
        max_tokens: int,
        wants_more: Callable[[], bool],
    ) -> None:
        self._engine, self._collector, self._prompts = engine, collector, prompts
        self._num_answers, self._max_tokens, self._wants_more = num_answers, max_tokens, wants_more
        self.num_answered = self.output_tokens = 0
        self.skip_to(0)

    def skip_to(self, number: int) -> None:
        """Begin with the answer of this number: those before it are known to the trainer."""
        self._requests = self._remaining(number)
        self._next = next(self._requests, None)
        self.num_answered = number

    @property
    def exhausted(self) -> bool:
        """No further outcome will come."""
        return self._next is None and not self._engine.has_work

    def read(self, max_count: int, block_ms: int) -> list[tuple[str, Outcome]]:
        """Answers that are finished, after as many steps as it takes to finish one; none while none are wanted."""
        outcomes: list[Outcome] = []
        while not outcomes and not self.exhausted and self._wants_more():
            self._fill()
            self._engine.step()
            outcomes = self._collector.take()
        self.num_answered += len(outcomes)
        self.output_tokens += sum(len(outcome.output_ids) for outcome in outcomes)
        # In their prompts' order: the last position is where a later run begins.
        outcomes.sort(key=lambda outcome: int(outcome.request_id))
        return [(outcome.request_id, outcome) for outcome in outcomes]

    def ack(self, positions: Sequence[str]) -> None:
        """A checkpoint contains them; there is nothing to keep."""

    def lag(self) -> int | None:
        """Answers still to come."""
        return self._num_answers - self.num_answered

    def _fill(self) -> None:
        """Keep every row of the engine busy."""
        running = self._engine.status()
        for _ in range(running.max_slots - running.running - running.waiting):
            if self._next is None:
                return
            self._engine.submit(self._next)
            self._next = next(self._requests, None)

    def _remaining(self, start: int) -> Iterator[Request]:
        greedy = SamplingParams(temperature=0.0, max_tokens=self._max_tokens)
        for number in range(start, self._num_answers):
            prompt_ids = self._prompts[number % len(self._prompts)]
            first = number < len(self._prompts)
            params = greedy if first else replace(greedy, temperature=0.8, top_p=0.95, seed=number)
            room = self._engine.target.max_context_tokens - self._max_tokens
            yield Request(request_id=str(number), prompt_ids=prompt_ids[-room:], params=params)
