"""One published version with what it accepts of held-out records, so that neither is read or measured twice."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from torch import Tensor

from osd.ports.weight_store import WeightStore
from osd.records.version import WeightManifest
from trainer.acceptance import ChainSums
from trainer.batches import Batch
from trainer.examples import ExampleKey
from trainer.gate import Measurement, measure
from trainer.student import Student


class MeasuredVersion:
    """Holds one version's weights in memory, until another is turned to.

    Args:
        store: the versions.
        like: a student of their kind and shape.
    """

    def __init__(self, store: WeightStore, like: Student) -> None:
        self._store, self._like = store, like
        self._student: Student | None = None
        self._held: tuple[int, str] | None = None
        """By what it was asked for."""
        self.manifest: WeightManifest | None = None
        """Its own."""
        self.rows: dict[ExampleKey, ChainSums] = {}
        """What it accepts of each example that was measured."""

    def turn_to(self, number: int, digest: str) -> Student:
        """Load a version, unless it is the one that is held already.

        Args:
            number: of the version.
            digest: of its tensors; a domain's trainer gives the base drafter's latest version always the same number.

        Raises:
            WeightsRefusedError: it cannot be loaded; what was held still is.
        """
        if self._student is None or self._held != (number, digest):
            manifest, state = self._store.load(number)
            self.hold(manifest, state, {})
            self._held = number, digest
        assert self._student is not None
        return self._student

    def hold(self, manifest: WeightManifest, state: Mapping[str, Tensor], rows: Mapping[ExampleKey, ChainSums]) -> None:
        """Hold a version whose weights are known, with what it accepts.

        Raises:
            WeightsRefusedError: the weights do not fit; what was held still is.
        """
        student = self._student or self._like.twin()
        student.load_state(state)
        self._student, self.manifest, self.rows = student, manifest, dict(rows)
        self._held = manifest.number, manifest.digest

    def measure(self, batches: Sequence[Batch], between: Callable[[], None]) -> Measurement:
        """See `trainer.gate.measure`; measures only rows that it has not measured before."""
        assert self._student is not None
        return measure(self._student, batches, between, self.rows)

    def keep_only(self, keys: Iterable[ExampleKey]) -> None:
        """Forget all other rows: they are no longer held out."""
        self.rows = {key: self.rows[key] for key in keys if key in self.rows}
