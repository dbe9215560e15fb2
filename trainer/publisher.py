"""Follows the weight store's serving version, and publishes a student that beats it.

consumes: the store's `latest` pointer
on failure: a version that cannot be loaded is reported once, and training continues from the old weights; a failed
    publish is reported, and the next attempt tries again
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Protocol

from torch import Tensor

from osd.ports.lease import TrainingLease, Unshared
from osd.ports.weight_store import WeightStore
from osd.records.errors import OsdError, WeightsRefusedError
from osd.records.events import EventKind
from osd.records.version import WeightManifest
from trainer.acceptance import ChainSums
from trainer.blend import blend, undo_blend
from trainer.examples import ExampleKey
from trainer.gate import GateDecision, compare, measure
from trainer.looks import Evidence
from trainer.measured_version import MeasuredVersion
from trainer.origin import Origin
from trainer.student import Student

_log = logging.getLogger(__name__)
_FIRST_SHARE = "first_share"
"""In a manifest's gate: how much of the version that training began with was blended in."""


class Reporter(Protocol):
    """Reports to the operator."""

    def event(self, kind: EventKind, message: str, **data: float) -> None:
        """Report an event."""
        ...

    def problem(self, message: str) -> None:
        """Report a problem, once for as long as the message stays the same."""
        ...


class Publisher:
    """Keeps the student descended from the serving version, and publishes it when it is better.

    Args:
        store: the versions of this kind of drafter.
        student: the drafter in training.
        margin: acceptance length that a candidate must certainly gain; see `trainer.gate.decide`.
        reporter: receives publishes, refusals, replaced weights and failures.
        lease: while it is not held nothing is published; None: there is no other trainer.
        first_share: share of the version that training began with in what is published; see `trainer.blend`.
    """

    def __init__(
        self,
        store: WeightStore,
        student: Student,
        margin: float,
        reporter: Reporter,
        lease: TrainingLease | None = None,
        first_share: float = 0.0,
    ) -> None:
        self._store, self._student, self._margin, self._reporter = store, student, margin, reporter
        self._lease, self._first_share = lease or Unshared(), first_share
        self._blended: Student | None = None
        self._origin = Origin(store, student)
        self._served = MeasuredVersion(store, student)
        self._refused: set[int] = set()
        self.serving = 0
        """The version from which the student's weights descend; 0: none yet."""
        self._digest = ""
        """Of its tensors."""
        self.figures: dict[str, float] = {}
        """The measurements of the latest gate decision."""

    def follow(self) -> bool:
        """Load the serving version into the student unless it descends from it; True if it was loaded."""
        latest = self._store.latest()
        if latest is None or latest.number in self._refused:
            return False
        if latest.number == self.serving:
            self._digest = latest.digest  # of a domain without a version of its own, the base drafter's changes
            return False
        try:
            self._train_on_from(*self._store.load(latest.number))
        except WeightsRefusedError as error:
            self._refused.add(latest.number)
            self._reporter.problem(f"cannot train on from version {latest.number}: {error}")
            return False
        if self.serving:
            message = f"training goes on from version {latest.number} instead of {self.serving}"
            self._reporter.event("restart", message, version=latest.number)
        self.serving, self._digest = latest.number, latest.digest
        return True

    def _candidate(self) -> tuple[Student, float]:
        """The student blended with the version that training began with, and the share of that; or as it is, and 0."""
        first = self._origin.student() if self._first_share else None
        if first is None:
            return self._student, 0.0
        self._blended = self._blended or self._student.twin()
        self._blended.load_state(self._student.state())
        blend(self._blended, first, self._first_share)
        return self._blended, self._first_share

    def _train_on_from(self, manifest: WeightManifest, state: Mapping[str, Tensor]) -> None:
        """Load a version into the student; of a blend, what was blended.

        Raises:
            WeightsRefusedError: it does not fit.
        """
        self._student.load_state(state)
        share = manifest.gate.get(_FIRST_SHARE, 0.0)
        first = self._origin.student() if share else None
        if first is not None and self._origin.number < manifest.number:
            undo_blend(self._student, first, share)

    def attempt(
        self,
        evidence: Evidence,
        *,
        training_step: int,
        stream_position: str,
        between: Callable[[], None],
        demanded: bool = False,
    ) -> GateDecision | None:
        """Compare the student with the serving version on held-out records (see `compare`); publish it if it is better.

        If on the newest records the version that training began with is better than what would serve, that one is
        published instead. With `demanded` the student is published whatever the comparisons say: an operator wants it.

        A student that is worse is reset to the serving version. Returns None if that version cannot be loaded, or if
        there are no held-out records.
        """
        if not evidence.looks:
            return None
        try:
            serving = self._served.turn_to(self.serving, self._digest)
        except WeightsRefusedError as error:
            self._reporter.problem(f"cannot compare with serving version {self.serving}: {error}")
            return None
        student, share = self._candidate()
        candidate: dict[ExampleKey, ChainSums] = {}
        decision = compare(
            evidence.looks,
            lambda batches: measure(student, batches, between, candidate),
            lambda batches: self._served.measure(batches, between),
            margin=self._margin,
        )
        rival = f"version {self.serving}"
        if demanded:
            if not decision.published:
                figures = {**decision.figures, "published": 1.0, "demanded": 1.0}
                decision = GateDecision(published=True, worse=False, figures=figures)
        elif origin := self._origin.beats(
            lambda batches: (
                measure(self._student, batches, between, candidate)
                if decision.published
                else self._served.measure(batches, between)
            ),
            evidence.newest if decision.published else evidence.unseen,
            serving=self.serving,
            margin=self._margin,
            between=between,
        ):
            rival = "the candidate" if decision.published else rival
            self._student.load_state(origin[0].state())
            decision, candidate = replace(origin[1], goes_back=True), {}
            student, share = self._student, 0.0
        self._served.keep_only(evidence.keys())
        self.figures = decision.figures
        text = (
            f"held-out acceptance length {self.figures['length']:.3f}, "
            f"{rival} has {self.figures['serving_length']:.3f}, "
            f"gain between {self.figures['gain_low']:+.3f} and {self.figures['gain_high']:+.3f}"
        )
        if decision.goes_back:
            text = f"the drafter that training began with, on the newest {self.figures['records']:g} records: {text}"
        if decision.losers:
            text += f", but {', '.join(map(repr, decision.losers))} would lose"
        if decision.published:
            self.figures = {**self.figures, _FIRST_SHARE: share}
            self._publish(student, text, training_step, stream_position, candidate)
        else:
            _log.info("candidate of step %d not published: %s, margin %.4f", training_step, text, self._margin)
            self._reporter.event("refuse", f"candidate of step {training_step} not published: {text}", **self.figures)
        if decision.worse:
            assert self._served.manifest is not None
            self._train_on_from(self._served.manifest, serving.state())
        return decision

    def _publish(
        self,
        student: Student,
        text: str,
        training_step: int,
        stream_position: str,
        rows: Mapping[ExampleKey, ChainSums],
    ) -> None:
        """Publish a student, which accepts what `rows` say of held-out records; a failure is reported."""
        state = student.state()
        try:
            if not self._lease.is_held():
                raise OsdError("another trainer may have taken over")
            manifest = self._store.publish(
                state,
                kind=self._student.kind,
                config=self._student.config,
                parent=self.serving,
                training_step=training_step,
                stream_position=stream_position,
                gate=self.figures,
                fence=self._lease.fence,
            )
        except (OSError, OsdError) as error:
            self.figures = {**self.figures, "published": 0.0}
            self._reporter.problem(f"cannot publish a drafter version: {error}")
            return
        self._reporter.event(
            "publish", f"drafter version {manifest.number}: {text}", version=manifest.number, **self.figures
        )
        self.serving, self._digest = manifest.number, manifest.digest
        self._served.hold(manifest, state, rows)
