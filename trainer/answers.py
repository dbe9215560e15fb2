"""Answers of the target to prompts, on disk: made once, trained on as often as wanted.

Distilling on the target's own text (sequence-level knowledge distillation, Kim and Rush 2016, arXiv 1606.07947) trains
the student where it will be asked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from osd.engine.engine import Engine
from osd.io.codec import decode, encode
from osd.records.outcome import Outcome
from osd.records.query import Request, SamplingParams

_PER_FILE = 64


class AnswerFolder:
    """Outcomes in files of `_PER_FILE`, each written at once; a kill costs at most the answers of one file."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._num_files = len(list(folder.glob("*.msgpack")))

    def append(self, answers: Sequence[Outcome]) -> None:
        """Write one more file."""
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{self._num_files:06d}.msgpack"
        scratch = path.with_suffix(".tmp")
        scratch.write_bytes(msgspec.msgpack.encode([encode(answer) for answer in answers]))
        scratch.replace(path)
        self._num_files += 1

    def __iter__(self) -> Iterator[Outcome]:
        """Every answer."""
        for path in sorted(self._folder.glob("*.msgpack")):
            for data in msgspec.msgpack.decode(path.read_bytes(), type=list[bytes]):
                yield decode(data)

    def numbers(self) -> set[int]:
        """Which answers there are."""
        return {int(answer.request_id) for answer in self}


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


def answers_key(model: Path, prompts: Sequence[tuple[int, ...]], max_tokens: int) -> str:
    """Names the folder of one target's answers to these very prompts.

    Args:
        model: the target's folder; its name alone may be that of other weights, too.
        prompts: token ids.
        max_tokens: the longest answer.
    """
    digest = hashlib.sha256(msgspec.msgpack.encode((str(model), prompts, max_tokens)))
    return digest.hexdigest()[:12]


def make_answers(
    engine: Engine,
    collector: Collector,
    folder: AnswerFolder,
    prompts: Sequence[tuple[int, ...]],
    *,
    num_answers: int,
    max_tokens: int,
    on_progress: Callable[[int], None] = lambda made: None,
) -> None:
    """Make the answers that the folder lacks.

    The first answer to each prompt is greedy, further ones are sampled. Prompts of like length are read side by side:
    attention reads as far as the longest row of a pass.

    Args:
        engine: decodes plainly, records into `collector`, and belongs to this thread.
        collector: its recorder.
        folder: where answers go.
        prompts: token ids; of a prompt that leaves no room for its answer, the end is kept.
        num_answers: in all.
        max_tokens: longest answer.
        on_progress: told how many answers there are.
    """
    made = folder.numbers()
    waiting = iter(sorted(set(range(num_answers)) - made, key=lambda number: _order(number, prompts)))
    upcoming = next(waiting, None)
    num_made = len(made)
    while upcoming is not None or engine.has_work:
        running = engine.status()
        for _ in range(running.max_slots - running.running - running.waiting):
            if upcoming is None:
                break
            engine.submit(_request(upcoming, prompts, max_tokens, engine.target.max_context_tokens))
            upcoming = next(waiting, None)
        engine.step()
        if len(collector.outcomes) >= _PER_FILE or not (engine.has_work or upcoming is not None):
            num_made += len(collector.outcomes)
            folder.append(collector.outcomes)
            collector.outcomes = []
            on_progress(num_made)


def _order(number: int, prompts: Sequence[tuple[int, ...]]) -> tuple[int, int]:
    turn, which = divmod(number, len(prompts))
    return turn, len(prompts[which])


def _request(number: int, prompts: Sequence[tuple[int, ...]], max_tokens: int, max_context_tokens: int) -> Request:
    turn, which = divmod(number, len(prompts))
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens)
    if turn:
        params = replace(params, temperature=0.8, top_p=0.95, seed=number)
    prompt_ids = prompts[which][-(max_context_tokens - max_tokens) :]
    return Request(request_id=str(number), prompt_ids=prompt_ids, params=params)
