"""The version that training began with, to go back to where traffic changed and what was learnt does harm.

A drafter that learns one kind of traffic forgets others that it knew, which the gate cannot see before they come. So at
every decision the first version is compared with the one that would serve, on the newest held-out records only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from osd.ports.weight_store import WeightStore
from osd.records.errors import WeightsRefusedError
from osd.records.version import UNTRAINED, WeightManifest
from trainer.examples.batches import Batch
from trainer.examples.examples import ExampleKey
from trainer.gate.gate import GateDecision, Measurement, decide, measure
from trainer.losses.acceptance import ChainSums
from trainer.students.student import Student

NUM_RECORDS = 8
"""Newest held-out records to compare on; by default one in four queries is held out."""
_LEAST_RECORDS = 6


class Origin:
    """The newest version that was not trained online and not rolled back: the shipped drafter, or an operator's.

    Args:
        store: the versions; a domain's own drafter has none that was not trained.
        like: a student of their kind and shape.
    """

    def __init__(self, store: WeightStore, like: Student) -> None:
        self._store, self._like = store, like
        self._loaded: tuple[WeightManifest, Student] | None = None
        self._known: dict[ExampleKey, ChainSums] = {}

    def trained(self) -> Student | None:
        """The student with its weights; None if they are random, or if there is no such version."""
        found = self._load()
        return None if found is None or found[0].note == UNTRAINED else found[1]

    def beats(
        self,
        other: Mapping[ExampleKey, ChainSums],
        batches: Sequence[Batch],
        *,
        serving: int,
        margin: float,
        between: Callable[[], None],
    ) -> tuple[Student, GateDecision] | None:
        """The origin's weights, and the comparison that says that they are certainly better; None if they are not.

        Args:
            other: what the version that would serve accepts of each example.
            batches: the newest held-out records.
            serving: the version in service, which has nowhere to go back to if it is the origin.
            margin: see `trainer.gate.gate.decide`.
            between: see `trainer.gate.gate.measure`.
        """
        num_records = sum(len(batch.keys) for batch in batches)
        if num_records < _LEAST_RECORDS:
            return None
        found = self._load()
        if found is None or found[0].number == serving:
            return None
        student = found[1]
        own = measure(student, batches, between, self._known)
        keys = [key for batch in batches for key in batch.keys]
        self._known = {key: self._known[key] for key in keys}
        decision = decide({"": (own, Measurement.of_rows(other, keys))}, margin=margin, num_records=num_records)
        return (student, decision) if decision.published else None

    def _load(self) -> tuple[WeightManifest, Student] | None:
        """Its manifest and weights, which are loaded once; None if there is no such version, or it cannot be loaded."""
        newest = max((one for one in self._store.list() if one.is_origin), key=lambda one: one.number, default=None)
        if newest is None:
            return None
        if self._loaded is None or self._loaded[0].number != newest.number:
            student = self._like.twin()
            try:
                student.load_state(self._store.load(newest.number)[1])
            except WeightsRefusedError:
                return None
            self._loaded, self._known = (newest, student), {}
        return self._loaded
