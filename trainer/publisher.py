"""The trainer's end of the weight store: whose weights it descends from, and what of its own it publishes.

consumes: the store's `latest` pointer
on failure: a version that cannot be loaded is reported once and training goes on from the old weights; a store that
    cannot be written to is reported, and the next attempt tries again
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from osd.ports.weight_store import WeightStore
from osd.records.errors import OsdError, WeightsRefusedError
from osd.records.events import EventKind
from trainer.batches import Batch
from trainer.gate import Verdict, judge, measure
from trainer.student import Student

_log = logging.getLogger(__name__)


class Reporter(Protocol):
    """Takes what an operator should see."""

    def event(self, kind: EventKind, message: str, **data: float) -> None:
        """Something happened."""
        ...

    def problem(self, message: str) -> None:
        """Something is wrong; said once for as long as it stays the same."""
        ...


class Publisher:
    """Follows the store, and publishes a student that beats the serving version.

    Args:
        store: versions of this kind of drafter.
        student: what is trained.
        margin: held-out acceptance that a candidate must gain.
        reporter: told of publishes, refusals, replaced weights and failures.
    """

    def __init__(self, store: WeightStore, student: Student, margin: float, reporter: Reporter) -> None:
        self._store, self._student, self._margin, self._reporter = store, student, margin, reporter
        self._refused: set[int] = set()
        self.serving = 0
        """The version that the student's weights descend from; 0: none yet."""
        self.figures: dict[str, float] = {}
        """Of the latest decision."""

    def follow(self) -> bool:
        """Load the serving version into the student where it does not descend from it; True when that was done."""
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
        batches: Sequence[Batch],
        *,
        num_records: int,
        training_step: int,
        stream_position: str,
        between: Callable[[], None],
    ) -> Verdict | None:
        """Compare the student with the serving version on held-out batches, and publish it if it is better.

        One that is worse gets the serving version's weights back. None: there was nothing to compare with.
        """
        serving = self._student.twin()
        try:
            serving.load_state(self._store.load(self.serving)[1])
        except WeightsRefusedError as error:
            self._reporter.problem(f"cannot compare with serving version {self.serving}: {error}")
            return None
        verdict = judge(
            measure(self._student, batches, between),
            measure(serving, batches, between),
            margin=self._margin,
            num_records=num_records,
        )
        self.figures = verdict.figures
        text = (
            f"held-out acceptance {self.figures['candidate']:.4f}, "
            f"version {self.serving} has {self.figures['serving']:.4f}"
        )
        if verdict.published:
            self._publish(text, training_step, stream_position)
        else:
            _log.info("candidate of step %d not published: %s, margin %.4f", training_step, text, self._margin)
            self._reporter.event("refuse", f"candidate of step {training_step} not published: {text}", **self.figures)
        if verdict.worse:
            self._student.load_state(serving.state())
        return verdict

    def _publish(self, text: str, training_step: int, stream_position: str) -> None:
        try:
            manifest = self._store.publish(
                self._student.state(),
                kind=self._student.kind,
                config=self._student.config,
                parent=self.serving,
                training_step=training_step,
                stream_position=stream_position,
                gate=self.figures,
            )
        except (OSError, OsdError) as error:
            self.figures = {**self.figures, "published": 0.0}
            self._reporter.problem(f"cannot publish a drafter version: {error}")
            return
        self._reporter.event(
            "publish", f"drafter version {manifest.number}: {text}", version=manifest.number, **self.figures
        )
        self.serving = manifest.number
