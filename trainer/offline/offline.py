"""Offline training: a given number of passes over a fixed set of answers, with a learning rate that decays to zero.

Student, losses, training step and gate are those of the online trainer.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from osd.config.trainer import TrainerConfig
from osd.ports.weight_store import WeightStore
from osd.records.errors import OsdError, WeightsRefusedError
from osd.records.events import Event, EventKind
from osd.records.outcome import Outcome
from trainer.examples.batches import Batch, make_batches
from trainer.examples.examples import Example, make_examples, unfit_because
from trainer.gate.gate import Measurement, measure
from trainer.gate.publisher import Publisher
from trainer.loop.checkpoint import CheckpointFolder
from trainer.optimization.step import StepResult, new_training_step
from trainer.replay.replay import is_held_out
from trainer.students.student import Student
from trainer.students.token_counts import TokenCounts

_log = logging.getLogger(__name__)
_SEEN_BEFORE = 16.0
"""Count added to each token of the drafter's vocabulary before the most frequent tokens are chosen, so that a narrow
set of prompts does not displace tokens learnt from other traffic (measured: benchmarks/log.md)."""
_BATCHES_AT_ONCE = 2
"""A batch has this many times the columns of an online one, since no server needs the memory."""


class OfflineTrainer:
    """Trains a student on answers; those of some prompts are held out.

    Args:
        config: the `trainer` section.
        student: starts from the store's latest version, or continues from the checkpoint.
        store: where the result is published.
        folder: of the checkpoint.
        answers: in any order.
        passes: how often each answer is trained on.
        on_event: called on publishes and refusals.

    Raises:
        OsdError: there are no answers to train on, or none are held out.
    """

    def __init__(
        self,
        config: TrainerConfig,
        student: Student,
        store: WeightStore,
        folder: Path,
        answers: Sequence[Outcome],
        *,
        passes: float,
        on_event: Callable[[Event], None] = lambda event: None,
    ) -> None:
        self._config, self._student, self._on_event = config, student, on_event
        fit = [answer for answer in answers if not unfit_because(answer, student.alignment)]
        # Shuffled, since answers of similar length and kind are adjacent on disk.
        fit = [fit[index] for index in np.random.default_rng(config.seed).permutation(len(fit))]
        # No more than the gate uses: of a large set, even a small share would be many.
        self._held_out_share = min(config.held_out_share, config.held_out_records / max(len(fit), 1))
        held_out = [answer for answer in fit if self._is_held_out(answer)]
        self.held_out = held_out[: config.held_out_records]
        self.train = [answer for answer in fit if not self._is_held_out(answer)]
        if not self.train or not self.held_out:
            raise OsdError(
                f"{len(self.train)} answers to train on and {len(self.held_out)} to judge by are too few; "
                "give more prompts, or set trainer.held_out_share"
            )
        self._passes = passes
        self._publisher = Publisher(store, student, config.gate_margin, self)
        self._update = new_training_step(config, student)
        self._judged = self._batches([example for answer in self.held_out for example in self._examples(answer)])
        self._folder = CheckpointFolder(folder)
        self._num_drawn = 0
        """Answers trained on so far, over all passes."""
        self.trained_tokens = 0
        self._publisher.follow()
        self._resume()
        counts = TokenCounts(student.alignment.vocab_tokens, half_life_records=math.inf)
        for answer in self.train:
            counts.observe(answer)
        student.refresh_vocab(counts.counts_V, seen_before=_SEEN_BEFORE)

    @property
    def progress(self) -> float:
        """Share of the training that is done."""
        return min(self._num_drawn / (self._passes * len(self.train)), 1.0)

    @property
    def steps(self) -> int:
        """Training steps, those of earlier runs included."""
        return self._update.steps

    def step(self) -> StepResult:
        """One training step; the learning rate follows half a cosine (Loshchilov and Hutter 2017, arXiv 1608.03983)."""
        scale = 0.5 * (1.0 + math.cos(math.pi * self.progress))
        result = self._update.run(self._batches(self._draw()), scale=scale)
        if result.applied:
            self.trained_tokens += result.num_tokens
        return result

    def measure(self) -> Measurement:
        """Held-out acceptance of the student."""
        return measure(self._student, self._judged)

    def publish_if_better(self) -> None:
        """Publish the student if it passes the gate against the version that it started from."""
        self._publisher.attempt(
            {"": self._judged},
            num_records=len(self.held_out),
            training_step=self.steps,
            stream_position="",
            between=lambda: None,
        )

    def checkpoint(self) -> None:
        """Save everything that a later run needs to continue."""
        done = {"steps": self.steps, "num_drawn": self._num_drawn, "trained_tokens": self.trained_tokens}
        self._folder.save(
            tensors=self._student.state(),
            optimizer=self._update.optimizer.state_dict(),
            progress={**self._identity(), **done},
            new_records=(),
            oldest=0,
        )

    def problem(self, message: str) -> None:
        """A publishing problem, which ends an offline run: raises it."""
        raise OsdError(message)

    def event(self, kind: EventKind, message: str, **data: float) -> None:
        """Pass on an event."""
        self._on_event(Event(at_s=time.time(), kind=kind, message=message, data=dict(data)))

    def _is_held_out(self, answer: Outcome) -> bool:
        """Chosen by prompt: other answers to a prompt that is trained on would not be a test."""
        return is_held_out(str(answer.prompt_ids), self._held_out_share)

    def _draw(self) -> list[Example]:
        """Examples of the next answers in this pass's random order."""
        drawn: list[Example] = []
        num_columns = 0
        while num_columns < self._config.batch_tokens:
            turn, position = divmod(self._num_drawn, len(self.train))
            examples = self._examples(self.train[_order(self._config.seed, turn, len(self.train))[position]])
            num_columns += sum(example.num_columns for example in examples)
            drawn += examples
            self._num_drawn += 1
        return drawn

    def _examples(self, answer: Outcome) -> list[Example]:
        student = self._student
        return list(make_examples(answer, student.alignment, max_predicting=student.max_batch_columns))

    def _batches(self, examples: list[Example]) -> list[Batch]:
        return make_batches(examples, _BATCHES_AT_ONCE * self._student.max_batch_columns)

    def _identity(self) -> dict[str, object]:
        """What a checkpoint must be of to be loaded."""
        return {
            "kind": self._student.kind,
            "config": str(self._student.config),
            "answers": len(self.train),
            "optimizer": self._config.optimizer,
        }

    def _resume(self) -> None:
        checkpoint = self._folder.load()
        if checkpoint is None:
            return
        progress = checkpoint.progress
        if any(progress.get(name) != value for name, value in self._identity().items()):
            _log.warning("the checkpoint is of another drafter, optimizer or set of answers: training starts anew")
            return
        try:
            self._student.load_state(checkpoint.tensors)
        except WeightsRefusedError as error:
            _log.warning("the checkpoint is ignored: %s", error)
            return
        self._update.optimizer.load_state_dict(dict(checkpoint.optimizer))
        self._update.steps, self._num_drawn = progress["steps"], progress["num_drawn"]
        self.trained_tokens = progress["trained_tokens"]


@lru_cache(maxsize=1)
def _order(seed: int, turn: int, count: int) -> list[int]:
    """The random order of a pass; deterministic in seed and pass."""
    return [int(index) for index in np.random.default_rng((seed, turn)).permutation(count)]
