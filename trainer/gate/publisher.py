"""Follows the weight store's serving version, and publishes a student that beats it.

consumes: the store's `latest` pointer
on failure: a version that cannot be loaded is reported once, and training continues from the old weights; a failed
    publish is reported, and the next attempt tries again
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from osd.ports.lease import TrainingLease, Unshared
from osd.ports.weight_store import WeightStore
from osd.records.errors import OsdError, WeightsRefusedError
from osd.records.events import EventKind
from trainer.examples.batches import Batch
from trainer.examples.examples import ExampleKey
from trainer.gate.blend import blend
from trainer.gate.gate import GateDecision, decide, measure
from trainer.gate.origin import Origin
from trainer.losses.acceptance import ChainSums
from trainer.students.student import Student

_log = logging.getLogger(__name__)


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
        margin: acceptance length that a candidate must certainly gain; see `trainer.gate.gate.decide`.
        reporter: receives publishes, refusals, replaced weights and failures.
        lease: while it is not held nothing is published; None: there is no other trainer.
        first_share: share of the version that training began with in what is published; see `trainer.gate.blend`.
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
        self._origin = Origin(store, student)
        self._refused: set[int] = set()
        self.serving = 0
        """The version from which the student's weights descend; 0: none yet."""
        self.figures: dict[str, float] = {}
        """The measurements of the latest gate decision."""
        self._known: dict[ExampleKey, ChainSums] = {}
        """What the serving version accepts of held-out examples, so that it is measured on new ones only."""
        self._digest = ""
        """Of the weights that `_known` was measured with; the base drafter, where that serves a domain, changes."""

    def follow(self) -> bool:
        """Load the serving version into the student unless it descends from it; True if it was loaded."""
        latest = self._store.latest()
        if latest is None or latest.number == self.serving or latest.number in self._refused:
            return False
        try:
            self._student.load_state(self._store.load(latest.number)[1])
        except WeightsRefusedError as error:
            self._refused.add(latest.number)
            self._reporter.problem(f"cannot train on from version {latest.number}: {error}")
            return False
        if self.serving:
            message = f"training goes on from version {latest.number} instead of {self.serving}"
            self._reporter.event("restart", message, version=latest.number)
        self.serving = latest.number
        return True

    def attempt(
        self,
        batches: Mapping[str, Sequence[Batch]],
        newest: Sequence[Batch] = (),
        *,
        num_records: int,
        training_step: int,
        stream_position: str,
        between: Callable[[], None],
        demanded: bool = False,
    ) -> GateDecision | None:
        """Compare the candidate with the serving version on each domain's held-out batches; publish it if it is better.

        If on the `newest` of these records the version that training began with is better than both, that one is
        published instead. With `demanded` the candidate is published whatever the comparisons say.

        A student whose candidate is worse is reset to the serving version. Returns None if that cannot be loaded.
        """
        serving = self._student.twin()
        try:
            manifest, state = self._store.load(self.serving)
            serving.load_state(state)
        except WeightsRefusedError as error:
            self._reporter.problem(f"cannot compare with serving version {self.serving}: {error}")
            return None
        if manifest.digest != self._digest:
            self._known, self._digest = {}, manifest.digest
        student, candidate = self._candidate(), dict[ExampleKey, ChainSums]()
        decision = decide(
            {
                domain: (measure(student, own, between, candidate), measure(serving, own, between, self._known))
                for domain, own in batches.items()
            },
            margin=self._margin,
            num_records=num_records,
        )
        self._known = {key: self._known[key] for key in candidate}
        rival = f"version {self.serving}"
        if demanded:
            if not decision.published:
                figures = {**decision.figures, "published": 1.0, "demanded": 1.0}
                decision = GateDecision(published=True, worse=False, figures=figures)
        elif origin := self._origin.beats(
            candidate if decision.published else self._known,
            newest,
            serving=self.serving,
            margin=self._margin,
            between=between,
        ):
            rival = "the candidate" if decision.published else rival
            student = origin[0]
            self._student.load_state(student.state())
            decision, candidate = replace(origin[1], goes_back=True), {}
        self.figures = decision.figures
        text = (
            f"held-out acceptance length {self.figures['length']:.3f}, "
            f"{rival} has {self.figures['serving_length']:.3f}, "
            f"gain between {self.figures['gain_low']:+.3f} and {self.figures['gain_high']:+.3f}"
        )
        if decision.goes_back:
            text = f"the drafter that training began with, on the newest {self.figures['records']:g} records: {text}"
        if "demanded" in self.figures:
            text += ", as an operator asked"
        if decision.losers:
            text += f", but {', '.join(map(repr, decision.losers))} would lose"
        if decision.published:
            if self._publish(student, text, training_step, stream_position):
                self._known = candidate
        else:
            _log.info("candidate of step %d not published: %s, margin %.4f", training_step, text, self._margin)
            self._reporter.event("refuse", f"candidate of step {training_step} not published: {text}", **self.figures)
        if decision.worse:
            self._student.load_state(serving.state())
        return decision

    def _candidate(self) -> Student:
        """What may be published: the student, or its blend with a trained version that training began with."""
        first = self._origin.trained() if self._first_share else None
        return self._student if first is None else blend(self._student, first, self._first_share)

    def _publish(self, student: Student, text: str, training_step: int, stream_position: str) -> bool:
        """Whether it worked."""
        try:
            if not self._lease.is_held():
                raise OsdError("another trainer may have taken over")
            manifest = self._store.publish(
                student.state(),
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
            return False
        self._reporter.event(
            "publish", f"drafter version {manifest.number}: {text}", version=manifest.number, **self.figures
        )
        self.serving, self._digest = manifest.number, manifest.digest
        return True
