"""A trainer with fakes around it, a manual clock, and its recorded events."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from osd.records.events import Event
from osd.records.version import UNTRAINED
from tests.kit.clock import Clock
from tests.kit.trainer_fakes import FakeSource, FakeStore, feature_student, learnable_outcome, trainer_config
from trainer.loop.loop import Trainer


class Bench:
    """A trainer and everything around it."""

    def __init__(
        self, folder: Path, *, student: Any = None, note: str = UNTRAINED, outcomes: int = 30, **config: Any
    ) -> None:
        self.source, self.store, self.clock = FakeSource(), FakeStore(), Clock()
        self.events: list[Event] = []
        self.may_train = True
        self.folder, self.config = folder, config
        for number in range(outcomes):
            self.source.put(learnable_outcome(number))
        first = student or feature_student()
        self.store.publish(first.state(), kind=first.kind, config=first.config, parent=None, note=note)
        self.trainer = self.start(student)

    def start(self, student: Any = None) -> Trainer:
        """A new trainer process on the same folder, stream and store."""
        self.source.new_reader()
        self.student = student or feature_student()
        self.trainer = Trainer(
            trainer_config(**self.config),
            self.student,
            self.source,
            self.store,
            self.folder,
            target_id="tiny",
            may_train=lambda: self.may_train,
            on_event=self.events.append,
            checkpoint_every_s=60.0,
            pause_after_error_s=0.01,
            clock=self.clock,
        )
        return self.trainer

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.trainer.run_once()

    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]
