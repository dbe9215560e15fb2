"""Makes batches of the replay's outcomes, for training and for the gate."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import chain
from typing import Literal

from osd.config.trainer import TrainerConfig
from osd.records.outcome import Outcome
from trainer.examples.batches import Batch, make_batches, take_columns
from trainer.examples.examples import Alignment, Example, make_examples
from trainer.replay.replay import Replay
from trainer.students.student import Student


class TrainingData:
    """Makes batches for one student.

    Args:
        config: the `trainer` section: which positions are trained on, and how many in a step.
        replay: the outcomes.
        student: decides the alignment and the width of a batch.
    """

    def __init__(self, config: TrainerConfig, replay: Replay, student: Student) -> None:
        self._config, self._replay, self._student = config, replay, student

    def for_step(self, without: Collection[str]) -> list[Batch]:
        """Batches of one training step, drawn from the replay.

        Empty if there is nothing to train on: all domains are left out, or nothing was rejected and `positions` is
        "rejected".

        Args:
            without: domains that are not trained on.
        """
        drawn = (outcome for outcome in self._replay.draw() if outcome.domain not in without)
        alignment, positions = self._student.alignment.for_training(), self._config.positions
        examples = chain.from_iterable(self._examples(outcome, alignment, positions) for outcome in drawn)
        trained_on = (example for example in examples if bool(example.in_loss_Q.any()))
        return self._batches(take_columns(trained_on, self._config.batch_tokens))

    def held_out(self) -> dict[str, list[Batch]]:
        """Batches of all held-out outcomes, by domain."""
        by_domain: dict[str, list[Outcome]] = {}
        for outcome in self._replay.held_out():
            by_domain.setdefault(outcome.domain, []).append(outcome)
        batches = {domain: self.to_judge_by(outcomes) for domain, outcomes in by_domain.items()}
        return {domain: own for domain, own in batches.items() if own}

    def newest(self, num_records: int) -> list[Batch]:
        """Batches of the newest held-out outcomes."""
        return self.to_judge_by(self._replay.held_out()[-num_records:])

    def to_judge_by(self, outcomes: Iterable[Outcome]) -> list[Batch]:
        """Batches in which every output position counts."""
        alignment = self._student.alignment
        return self._batches(list(chain.from_iterable(self._examples(one, alignment, "all") for one in outcomes)))

    def _examples(self, outcome: Outcome, alignment: Alignment, positions: Literal["all", "rejected"]) -> list[Example]:
        most = self._student.max_batch_columns
        return list(make_examples(outcome, alignment, max_predicting=most, positions=positions))

    def _batches(self, examples: list[Example]) -> list[Batch]:
        return make_batches(examples, self._student.max_batch_columns)
