"""The version that training began with, to go back to where traffic changed and what was learnt does harm.

A drafter that learns one kind of traffic forgets others that it knew, which the gate cannot see before they come. So at
every decision the first version is compared with the one that would serve, on the newest held-out records only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from osd.ports.weight_store import WeightStore
from osd.records.errors import WeightsRefusedError
from trainer.examples.batches import Batch
from trainer.examples.examples import ExampleKey
from trainer.gate.gate import GateDecision, Measurement, decide, measure
from trainer.losses.acceptance import ChainSums
from trainer.students.student import Student

NUM_RECORDS = 8
"""Newest held-out records to compare on; by default one in four queries is held out."""
_LEAST_RECORDS = 6


class Origin:
    """The newest version that was not trained online: the shipped drafter, or one that an operator put there.

    Args:
        store: the versions; a domain's own drafter has none that was not trained.
    """

    def __init__(self, store: WeightStore) -> None:
        self._store, self._number = store, 0
        self._known: dict[ExampleKey, ChainSums] = {}

    def beats(
        self,
        other: Mapping[ExampleKey, ChainSums],
        batches: Sequence[Batch],
        twin: Callable[[], Student],
        *,
        serving: int,
        margin: float,
        between: Callable[[], None],
    ) -> tuple[Student, GateDecision] | None:
        """The origin's weights, and the comparison that says that they are certainly better; None if they are not.

        Args:
            other: what the version that would serve accepts of each example.
            batches: the newest held-out records.
            twin: makes a student to load the origin into.
            serving: the version in service, which has nowhere to go back to if it is the origin.
            margin: see `trainer.gate.gate.decide`.
            between: see `trainer.gate.gate.measure`.
        """
        num_records = sum(len(batch.keys) for batch in batches)
        if num_records < _LEAST_RECORDS:
            return None
        number = max((one.number for one in self._store.list() if one.is_origin), default=0)
        if number in (0, serving):
            return None
        student = twin()
        try:
            student.load_state(self._store.load(number)[1])
        except WeightsRefusedError:
            return None
        if number != self._number:
            self._number, self._known = number, {}
        own = measure(student, batches, between, self._known)
        keys = [key for batch in batches for key in batch.keys]
        self._known = {key: self._known[key] for key in keys}
        decision = decide({"": (own, Measurement.of_rows(other, keys))}, margin=margin, num_records=num_records)
        return (student, decision) if decision.published else None
