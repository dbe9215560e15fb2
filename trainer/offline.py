"""Offline training: whole passes over a fixed set of answers, with a step size that falls to nothing.

The student, its losses, the training step and the gate are the online trainer's; what differs is where examples come
from and that the end is known.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from osd.config.settings import TrainerConfig
from osd.ports.weight_store import WeightStore
from osd.records.errors import OsdError, WeightsRefusedError
from osd.records.events import Event, EventKind
from osd.records.outcome import Outcome
from trainer.batches import Batch, make_batches
from trainer.checkpoint import CheckpointFolder
from trainer.examples import Example, make_examples, unfit_because
from trainer.gate import Measurement, measure
from trainer.publisher import Publisher
from trainer.replay import is_held_out
from trainer.step import StepResult, new_training_step
from trainer.student import Student
from trainer.token_counts import TokenCounts

_log = logging.getLogger(__name__)
_SEEN_BEFORE = 16.0
"""A file of prompts of one kind is not all that a drafter will be asked: what it has learnt to say is not given up for
a token or two more of that kind (benchmarks/log.md)."""
_BATCHES_AT_ONCE = 2
"""The columns of so many online batches in one: there is no server beside to leave memory for."""


class OfflineTrainer:
    """Trains a student on answers, some of which are held out by their prompt.

    Args:
        config: the `trainer` section.
        student: starts from the store's latest version, or goes on from the checkpoint.
        store: where the result is published.
        folder: of the checkpoint.
        answers: in any order.
        passes: how often each answer is trained on.
        on_event: told of publishes and refusals.

    Raises:
        OsdError: there is nothing to train on, or nothing to judge by.
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
        # The order of arrival says something of length and kind.
        fit = [fit[index] for index in np.random.default_rng(config.seed).permutation(len(fit))]
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
        """Answers trained on, over all passes."""
        self.trained_tokens = 0
        self._publisher.follow()
        self._resume()
        counts = TokenCounts(student.alignment.vocab_tokens, half_life_records=math.inf)
        for answer in self.train:
            counts.observe(answer)
        student.refresh_vocab(counts.counts_V, seen_before=_SEEN_BEFORE)

    @property
    def progress(self) -> float:
        """Share of the work that is done."""
        return min(self._num_drawn / (self._passes * len(self.train)), 1.0)

    @property
    def steps(self) -> int:
        """Training steps, over all runs."""
        return self._update.steps

    def step(self) -> StepResult:
        """One training step; the step size falls along half a cosine (Loshchilov and Hutter 2017, arXiv 1608.03983)."""
        scale = 0.5 * (1.0 + math.cos(math.pi * self.progress))
        result = self._update.run(self._batches(self._draw()), scale=scale)
        if result.applied:
            self.trained_tokens += result.num_tokens
        return result

    def measure(self) -> Measurement:
        """Held-out acceptance now."""
        return measure(self._student, self._judged)

    def publish_if_better(self) -> None:
        """Let the gate judge the student against the version it started from."""
        self._publisher.attempt(
            self._judged,
            num_records=len(self.held_out),
            training_step=self.steps,
            stream_position="",
            between=lambda: None,
        )

    def checkpoint(self) -> None:
        """Save everything that a later run needs to go on."""
        done = {"steps": self.steps, "num_drawn": self._num_drawn, "trained_tokens": self.trained_tokens}
        self._folder.save(
            tensors=self._student.state(),
            optimizer=self._update.optimizer.state_dict(),
            progress={**self._identity(), **done},
            new_records=(),
            oldest=0,
        )

    def problem(self, message: str) -> None:
        """What the publisher cannot do ends an offline run."""
        raise OsdError(message)

    def event(self, kind: EventKind, message: str, **data: float) -> None:
        """Pass on what the publisher tells."""
        self._on_event(Event(at_s=time.time(), kind=kind, message=message, data=dict(data)))

    def _is_held_out(self, answer: Outcome) -> bool:
        """By the prompt: another answer to a prompt that is trained on would be no test."""
        return is_held_out(str(answer.prompt_ids), self._config.held_out_share)

    def _draw(self) -> list[Example]:
        """The next answers of this pass's random order."""
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
        """A checkpoint of anything else is foreign."""
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
    """A pass's random order; the same whenever it is asked for."""
    return [int(index) for index in np.random.default_rng((seed, turn)).permutation(count)]
