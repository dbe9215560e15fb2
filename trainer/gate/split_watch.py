"""Watches whether a domain's own drafter is still better than the base drafter, which is trained as well.

Both are measured on the domain's held-out queries, as by the gate. A domain gets its own drafter if the 95% interval of
the gain lies above zero. If it does not in two comparisons in a row, with new queries between them, the base drafter
serves the domain again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from osd.ports.weight_store import WeightStore
from osd.records.version import MERGED, WeightManifest
from trainer.examples.batches import Batch
from trainer.gate.gate import gain_interval, measure
from trainer.students.student import Student

_EVERY_OUTCOMES = 64
"""New outcomes of the domain between two comparisons; by default one in four of them is held out."""
LEAST_RECORDS = 16
"""Held-out queries for a comparison."""
_MOST_FAILURES = 2


class SplitWatch:
    """Compares one domain's drafter with the base drafter.

    Args:
        own: the versions of the domain's drafter.
        base: those of the base drafter.
    """

    def __init__(self, own: WeightStore, base: WeightStore) -> None:
        self._own, self._base = own, base
        self._compared_at = self._num_failures = 0
        self.figures: dict[str, float] = {}
        """Of the latest comparison: acceptance `length` of the domain's drafter, `base_length`, and `gain_low` and
        `gain_high`, the 95% interval of their difference; empty before the first."""

    def is_due(self, num_outcomes: int) -> bool:
        """Whether to compare now.

        Args:
            num_outcomes: of the domain, so far.
        """
        return num_outcomes - self._compared_at >= _EVERY_OUTCOMES

    def has_failed(
        self, student: Student, batches: Sequence[Batch], num_outcomes: int, between: Callable[[], None]
    ) -> bool:
        """Compare the versions in service; True if the base drafter is to serve the domain again.

        Args:
            student: a student of the same kind, whose weights are as before afterwards.
            batches: the domain's held-out queries.
            num_outcomes: see `is_due`.
            between: called between batches.

        Raises:
            WeightsRefusedError: a version cannot be loaded.
        """
        self._compared_at = num_outcomes
        own, base = self._own.latest(), self._base.latest()
        confirmed = self._own.confirmed()
        if own is None or base is None or (confirmed is not None and confirmed.pinned):
            self._num_failures, self.figures = 0, {}
            return False
        mine, others = (
            measure(_loaded(student, store, version), batches, between)
            for store, version in ((self._own, own), (self._base, base))
        )
        low, high = gain_interval(mine, others)
        self.figures = {"length": mine.length, "base_length": others.length, "gain_low": low, "gain_high": high}
        self._num_failures = 0 if low > 0.0 else self._num_failures + 1
        return self._num_failures >= _MOST_FAILURES

    def merge(self) -> str:
        """Let the base drafter serve the domain again; returns why.

        Raises:
            OsdError: the store cannot be written.
        """
        figures = self.figures
        reason = (
            f"held-out acceptance length {figures['length']:.3f}, the base drafter has {figures['base_length']:.3f}, "
            f"gain between {figures['gain_low']:+.3f} and {figures['gain_high']:+.3f}"
        )
        self._own.roll_back(to=0, reason=f"{MERGED}{reason}")
        self._num_failures = 0
        return reason


def _loaded(student: Student, store: WeightStore, version: WeightManifest) -> Student:
    other = student.twin()
    other.load_state(store.load(version.number)[1])
    return other
