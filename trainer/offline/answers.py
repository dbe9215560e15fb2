"""The target's own answers to prompts, stored on disk and reused by every training pass.

Training on the target's own text is sequence-level knowledge distillation (Kim and Rush 2016, arXiv 1606.07947): the
student learns on the distribution it will draft for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from osd.assembly.engine import open_engine
from osd.config.settings import Config
from osd.engine.engine import Engine
from osd.io.codec import decode, encode
from osd.records.outcome import Outcome
from osd.records.query import Request, SamplingParams

_PER_FILE = 64


class AnswerFolder:
    """Outcomes in files of `_PER_FILE` each, written atomically; a killed run loses at most one file's answers."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._num_files = len(list(folder.glob("*.msgpack")))

    def append(self, answers: Sequence[Outcome]) -> None:
        """Write these answers as one more file."""
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{self._num_files:06d}.msgpack"
        scratch = path.with_suffix(".tmp")
        scratch.write_bytes(msgspec.msgpack.encode([encode(answer) for answer in answers]))
        scratch.replace(path)
        self._num_files += 1

    def __iter__(self) -> Iterator[Outcome]:
        """All answers."""
        for path in sorted(self._folder.glob("*.msgpack")):
            for data in msgspec.msgpack.decode(path.read_bytes(), type=list[bytes]):
                yield decode(data)

    def numbers(self) -> set[int]:
        """The numbers of the answers in the folder."""
        return {int(answer.request_id) for answer in self}


class Collector:
    """An outcome recorder for the engine that collects outcomes in memory."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []

    def takes(self, request_id: str) -> bool:
        """Every query's."""
        return True

    def record(self, make: Callable[[], Outcome]) -> None:
        """Assemble and store one outcome."""
        self.outcomes.append(make())

    def counters(self) -> dict[str, int]:
        """No counters: nothing can be lost."""
        return {}


def open_answering(config: Config) -> tuple[Engine, Collector]:
    """An engine that decodes plainly, and the collector of its outcomes, for `make_answers`.

    Raises:
        OsdError: the target cannot be loaded.
    """
    collector = Collector()
    plain = config.speculation.model_copy(update={"enabled": False})
    return open_engine(config.model_copy(update={"speculation": plain}), recorder=collector), collector


def answers_key(model: Path, prompts: Sequence[tuple[int, ...]], max_tokens: int, reads: Sequence[object] = ()) -> str:
    """The folder name for one target's answers to these prompts: a hash of all that they depend on.

    Args:
        model: the target's folder; the hash covers more than its name, which other weights may share.
        prompts: token ids.
        max_tokens: the longest answer.
        reads: which hidden states are recorded with them; empty: the target's last ones.
    """
    digest = hashlib.sha256(msgspec.msgpack.encode((str(model), prompts, max_tokens, *reads)))
    return digest.hexdigest()[:12]


def make_answers(
    engine: Engine,
    collector: Collector,
    folder: AnswerFolder,
    prompts: Sequence[tuple[int, ...]],
    *,
    num_answers: int,
    max_tokens: int,
    temperature: float = 0.0,
    on_progress: Callable[[int], None] = lambda made: None,
) -> None:
    """Make the answers that the folder lacks.

    The first answer to each prompt is at `temperature`, further ones are sampled at temperature 0.8 and top-p 0.95.
    Prompts of similar length are batched together: attention in a pass covers as many positions as its longest row.

    Args:
        engine: decodes without speculation, records into `collector`, and belongs to this thread.
        collector: the engine's recorder.
        folder: where answers are written.
        prompts: token ids; of a prompt that leaves no room for its answer only the end is used.
        num_answers: total number of answers.
        max_tokens: longest answer.
        temperature: of the first answer to each prompt; 0 is greedy.
        on_progress: called with the number of answers made so far.
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
            params = SamplingParams(temperature=temperature, max_tokens=max_tokens, seed=upcoming)
            engine.submit(_request(upcoming, prompts, params, engine.target.max_context_tokens))
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


def _request(
    number: int, prompts: Sequence[tuple[int, ...]], params: SamplingParams, max_context_tokens: int
) -> Request:
    turn, which = divmod(number, len(prompts))
    if turn:
        params = replace(params, temperature=0.8, top_p=0.95)
    prompt_ids = prompts[which][-(max_context_tokens - params.max_tokens) :]
    return Request(request_id=str(number), prompt_ids=prompt_ids, params=params)
