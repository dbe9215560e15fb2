"""Where the trainer's time goes: the served trainer over recorded answers, its CPU time by kind of work."""

from __future__ import annotations

import cProfile
import pstats
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.adaptation.learner import ListSource, own_folder
from osd.assembly.drafter import ensure_first_version, open_store
from osd.config.settings import Config
from osd.loading.resolve import ResolvedTarget
from osd.records.events import Event
from osd.records.outcome import Outcome
from trainer.build import build_trainer

_WORK = {
    "read outcomes": ("trainer/intake.py", "read"),
    "make batches": ("trainer/training_data.py", "for_step"),
    "forward": ("trainer/feature_student.py", "loss_terms"),
    "backward": ("torch/autograd/__init__.py", "backward"),
    "update": ("trainer/step.py", "_update"),
    "gate": ("trainer/publisher.py", "attempt"),
    "gate's batches": ("trainer/training_data.py", "evidence"),
    "publish": ("trainer/publisher.py", "_publish"),
    "checkpoint": ("trainer/loop.py", "checkpoint"),
}
"""Kind of work to the file and the function whose time it is, with all that it calls."""


@dataclass(frozen=True, slots=True)
class TrainingProfile:
    """What training took."""

    steps: int
    trained_tokens: int
    decisions: int
    """Of the gate."""
    core_s: float
    """CPU seconds, all threads."""
    share: dict[str, float]
    """Of the CPU time, by kind of work; the gate's is without publishing."""

    def as_json(self) -> dict[str, object]:
        """The figures, rounded."""
        minutes = self.core_s / 60
        return {
            "steps": self.steps,
            "trained_tokens": self.trained_tokens,
            "decisions": self.decisions,
            "core_minutes": round(minutes, 3),
            "steps_a_core_minute": round(self.steps / minutes, 1),
            "trained_tokens_a_core_second": round(self.trained_tokens / self.core_s),
            "share": {name: round(value, 3) for name, value in self.share.items()},
        }


def profile_training(
    config: Config, resolved: ResolvedTarget, outcomes: Sequence[Outcome], steps_per_query: float
) -> TrainingProfile:
    """Feed outcomes to the trainer one by one; no query is decoded.

    Args:
        config: drafter and trainer sections are used as in serving.
        resolved: the target.
        outcomes: recorded answers.
        steps_per_query: training steps after each; fractions add up.
    """
    events: list[Event] = []
    with tempfile.TemporaryDirectory(prefix="osd-profile-") as scratch:
        config = own_folder(config, Path(scratch))
        store, source = open_store(config, resolved), ListSource()
        ensure_first_version(config, resolved, store)
        trainer = build_trainer(
            config, resolved.folder, store, source, target_id=resolved.target_id, on_event=events.append
        )
        profiler, due = cProfile.Profile(time.process_time), 0.0
        started_s = time.process_time()
        for outcome in outcomes:
            source.put(outcome)
            due += steps_per_query
            while due >= 1.0:
                profiler.runcall(trainer.run_once)
                due -= 1.0
        core_s = time.process_time() - started_s
        status = trainer.status()
    decisions = sum(event.kind in ("publish", "refuse") for event in events)
    return TrainingProfile(status.steps, status.trained_tokens, decisions, core_s, _shares(profiler, core_s))


def _shares(profiler: cProfile.Profile, core_s: float) -> dict[str, float]:
    spent_s = dict.fromkeys(_WORK, 0.0)
    found: Mapping[tuple[str, int, str], tuple[int, int, float, float, object]] = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    for (file, _, function), (_, _, _, cumulative_s, _) in found.items():
        for name, (end, wanted) in _WORK.items():
            if function == wanted and file.endswith(end):
                spent_s[name] += cumulative_s
    spent_s["gate"] -= spent_s["publish"]
    shares = {name: one / core_s for name, one in spent_s.items()}
    return {**shares, "other": 1.0 - sum(shares.values())}
