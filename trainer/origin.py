"""The version that training began with, to go back to where traffic changed and what was learnt does harm.

A drafter that learns one kind of traffic forgets others that it knew, which the gate cannot see before they come. So at
every decision the first version is compared with the one that would serve, on the newest records only: a candidate that
is to be published on held-out ones, the version that serves on all that came since it was published.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from osd.ports.weight_store import WeightStore
from osd.records.errors import WeightsRefusedError
from osd.records.version import UNTRAINED
from trainer.batches import Batch
from trainer.gate import GateDecision, Measurement, decide
from trainer.measured_version import MeasuredVersion
from trainer.student import Student

NUM_RECORDS = 8
"""Newest records to compare on."""
_LEAST_RECORDS = 6


class Origin:
    """The newest version that was not trained online: the shipped drafter, or one that an operator put there.

    Args:
        store: the versions; a domain's own drafter has none that was not trained.
        like: a student of their kind and shape.
    """

    def __init__(self, store: WeightStore, like: Student) -> None:
        self._store, self._version = store, MeasuredVersion(store, like)

    def student(self) -> Student | None:
        """Its weights; None if it was not trained at all, or if there is no such version."""
        number = self._store.origin()
        if number is None:
            return None
        try:
            student = self._version.turn_to(number, "")
        except WeightsRefusedError:
            return None
        assert self._version.manifest is not None
        return None if self._version.manifest.note == UNTRAINED else student

    @property
    def number(self) -> int:
        """The version that was asked for last; 0: none yet."""
        return 0 if self._version.manifest is None else self._version.manifest.number

    def beats(
        self,
        measure_other: Callable[[Sequence[Batch]], Measurement],
        batches: Sequence[Batch],
        *,
        serving: int,
        margin: float,
        between: Callable[[], None],
    ) -> tuple[Student, GateDecision] | None:
        """The origin's weights, and the comparison that says that they are certainly better; None if they are not.

        Args:
            measure_other: measures the version that would serve.
            batches: the newest records that this version was not trained on.
            serving: the version in service, which has nowhere to go back to if it is the origin.
            margin: see `trainer.gate.decide`.
            between: see `trainer.gate.measure`.
        """
        keys = [key for batch in batches for key in batch.keys]
        if len(keys) < _LEAST_RECORDS:
            return None
        number = self._store.origin()
        if number is None or number == serving:
            return None
        try:
            student = self._version.turn_to(number, "")
        except WeightsRefusedError:
            return None
        own = self._version.measure(batches, between)
        self._version.keep_only(keys)
        decision = decide({"": (own, measure_other(batches))}, margin=margin, num_records=len(keys))
        return (student, decision) if decision.published else None
