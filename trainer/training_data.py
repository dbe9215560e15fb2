"""Makes batches of the replay's outcomes, for training and for the gate."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import chain
from typing import Literal

from osd.config.trainer import TrainerConfig
from osd.records.outcome import Outcome
from trainer.batches import Batch, make_batches, take_columns
from trainer.examples import Alignment, Example, make_examples
from trainer.looks import Evidence, split_into_looks
from trainer.replay import Replay
from trainer.student import Student


class TrainingData:
    """Makes batches for one student.

    Args:
        config: the `trainer` section: which positions are trained on, and how many in a step.
        replay: the outcomes.
        student: decides the alignment and the width of a batch.
    """

    def __init__(self, config: TrainerConfig, replay: Replay, student: Student) -> None:
        self._config, self._replay, self._student = config, replay, student
        self._examples_to_judge_by: dict[str, list[Example]] = {}
        """By request id."""

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
        return self._by_domain(self._replay.held_out())

    def evidence(self, num_newest: int, since: int) -> Evidence:
        """Records for the gate to decide by.

        Args:
            num_newest: how many are the newest.
            since: sequence number of the first record on which the version that serves was not trained.
        """
        outcomes = self._replay.held_out()
        held_out = {outcome.request_id for outcome in outcomes}
        self._examples_to_judge_by = {key: one for key, one in self._examples_to_judge_by.items() if key in held_out}
        looks = [self._by_domain(own) for own in split_into_looks(outcomes, num_newest)]
        unseen = self._replay.since(max(since, self._replay.num_seen - num_newest))
        return Evidence(
            looks=[look for look in looks if look],
            newest=self.to_judge_by(outcomes[-num_newest:]),
            unseen=self.to_judge_by(outcome for _, outcome in unseen),
        )

    def to_judge_by(self, outcomes: Iterable[Outcome]) -> list[Batch]:
        """Batches in which every output position counts."""
        return self._batches(list(chain.from_iterable(map(self._to_judge_by, outcomes))))

    def _by_domain(self, outcomes: Iterable[Outcome]) -> dict[str, list[Batch]]:
        by_domain: dict[str, list[Outcome]] = {}
        for outcome in outcomes:
            by_domain.setdefault(outcome.domain, []).append(outcome)
        batches = {domain: self.to_judge_by(own) for domain, own in by_domain.items()}
        return {domain: own for domain, own in batches.items() if own}

    def _to_judge_by(self, outcome: Outcome) -> list[Example]:
        """Made once for each outcome, for as long as `evidence` finds it held out."""
        known = self._examples_to_judge_by.get(outcome.request_id)
        if known is None:
            known = self._examples_to_judge_by[outcome.request_id] = self._examples(
                outcome, self._student.alignment, "all"
            )
        return known

    def _examples(self, outcome: Outcome, alignment: Alignment, positions: Literal["all", "rejected"]) -> list[Example]:
        most = self._student.max_batch_columns
        return list(make_examples(outcome, alignment, max_predicting=most, positions=positions))

    def _batches(self, examples: list[Example]) -> list[Batch]:
        return make_batches(examples, self._student.max_batch_columns)
