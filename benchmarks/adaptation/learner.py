"""The trainer beside a replay: the served trainer, fed query by query, in this process and by count instead of time."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.adaptation.replay import LearnedProposer, context_tokens
from osd.assembly.drafter import ensure_first_version, open_store
from osd.assembly.kernels import backend_for
from osd.config.paths import checkpoint_dir
from osd.config.settings import Config
from osd.drafters.create import new_drafter_model
from osd.drafters.feature import FeatureDrafter
from osd.drafters.model import ModelDrafter
from osd.io.weight_store import FileWeightStore
from osd.kernels.reference.drafting.feature_net import FeatureConfig
from osd.loading.resolve import ResolvedTarget
from osd.loading.shared_rows import load_shared_rows
from osd.ports.drafter import Drafter, Swappable
from osd.records.events import Event
from osd.records.outcome import Outcome
from trainer.build import build_student, build_trainer
from trainer.offline.offline import OfflineTrainer
from trainer.students.student import Student


class ListSource:
    """An outcome stream in memory."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[str, Outcome]] = deque()
        self._num_put = 0

    def put(self, outcome: Outcome) -> None:
        """Append one."""
        self._num_put += 1
        self._waiting.append((f"{self._num_put}-0", outcome))

    def read(self, max_count: int, block_ms: int) -> list[tuple[str, Outcome]]:
        """See `OutcomeSource`."""
        return [self._waiting.popleft() for _ in range(min(max_count, len(self._waiting)))]

    def ack(self, positions: Sequence[str]) -> None:
        """Nothing is ever delivered twice."""

    def lag(self) -> int | None:
        """See `OutcomeSource`."""
        return len(self._waiting)


@dataclass(slots=True)
class Spent:
    """What learning took."""

    steps: int = 0
    trained_tokens: int = 0
    core_s: float = 0.0
    """CPU seconds of the process while it trained, all threads."""
    versions: int = 0
    """Published."""


class Learner:
    """A drafter and the trainer that improves it.

    Args:
        config: the `state_dir` is this learner's own; drafter and trainer sections are used as in serving.
        resolved: the target.
        hidden_size: of the target.
        steps_per_query: training steps after each query; fractions add up.
    """

    def __init__(self, config: Config, resolved: ResolvedTarget, hidden_size: int, steps_per_query: float) -> None:
        self._config, self._resolved, self._steps_per_query = config, resolved, steps_per_query
        self._store = open_store(config, resolved)
        ensure_first_version(config, resolved, self._store)
        self.drafter = open_bare_drafter(config, resolved, self._store)
        self.proposer = LearnedProposer(self.drafter, hidden_size, context_tokens(config), hidden_dtype(config))
        self.spent = Spent()
        self.drifts: list[tuple[int, str]] = []
        """After how many outcomes the trainer reported drift, and what it said."""
        self._num_outcomes = 0
        self._due = 0.0
        self._forced: tuple[int, Student] | None = None
        self._source = ListSource()
        self._trainer = build_trainer(
            config,
            resolved.folder,
            self._store,
            self._source,
            target_id=resolved.target_id,
            on_event=self._hear,
        )

    @property
    def gate(self) -> Mapping[str, float]:
        """The gate's figures of the serving version."""
        latest = self._store.latest()
        assert latest is not None
        return latest.gate

    def forced(self, length: int) -> Student:
        """The serving version's weights, to be scored at every position of an answer and `length` depths at once."""
        latest = self._store.latest()
        assert latest is not None
        if self._forced is None or self._forced[0] != latest.number:
            trainer = self._config.trainer.model_copy(update={"unroll_steps": length})
            config = self._config.model_copy(update={"trainer": trainer})
            student = build_student(config, latest, self._resolved.folder) if self._forced is None else self._forced[1]
            student.load_state(self._store.load(latest.number)[1])
            self._forced = latest.number, student
        return self._forced[1]

    def learn(self, outcome: Outcome) -> None:
        """Hand the trainer one more outcome, let it take its steps, and swap in what it published."""
        started_s = time.process_time()
        self._source.put(outcome)
        self._num_outcomes += 1
        self._due += self._steps_per_query
        while self._due >= 1.0:
            status = self._trainer.run_once()
            self._due -= 1.0
            self.spent.steps, self.spent.trained_tokens = status.steps, status.trained_tokens
        self.spent.core_s += time.process_time() - started_s
        self._follow()

    def train_offline(self, outcomes: Sequence[Outcome], passes: float) -> None:
        """Whole passes over outcomes that are all there, as `osd drafter distill` trains; the result is swapped in."""
        started_s = time.process_time()
        latest = self._store.latest()
        assert latest is not None
        folder = checkpoint_dir(self._config.state_dir, self._resolved.target_id, latest.kind) / "offline"
        student = build_student(self._config, latest, self._resolved.folder)
        trainer = OfflineTrainer(self._config.trainer, student, self._store, folder, outcomes, passes=passes)
        while trainer.progress < 1.0:
            trainer.step()
        trainer.publish_if_better()
        self.spent.steps, self.spent.trained_tokens = trainer.steps, trainer.trained_tokens
        self.spent.core_s += time.process_time() - started_s
        self._follow()

    def _hear(self, event: Event) -> None:
        if event.kind == "drift":
            self.drifts.append((self._num_outcomes, event.message))

    def _follow(self) -> None:
        latest = self._store.latest()
        if latest is not None and latest.number != self.drafter.id.version:
            assert isinstance(self.drafter, Swappable)
            self.drafter.prepare(self._store.load(latest.number)[1], latest.number)()
            self.spent.versions += 1


def open_bare_drafter(config: Config, resolved: ResolvedTarget, store: FileWeightStore) -> Drafter:
    """The latest version of the configured kind, for one row, without its target's layers."""
    latest = store.latest()
    assert latest is not None
    manifest, state = store.load(latest.number)
    dtype = hidden_dtype(config)
    shared = load_shared_rows(resolved.folder, dtype)
    backend = backend_for(shared.embedding_VH.device)
    drafter: Drafter
    if manifest.kind == "feature":
        drafter = FeatureDrafter(
            FeatureConfig(**manifest.config),
            shared,
            backend,
            num_slots=1,
            max_context_tokens=context_tokens(config),
            max_length=config.speculation.max_length,
        )
    else:
        drafter = ModelDrafter(
            new_drafter_model(config, resolved.folder).to(dtype),
            backend,
            num_slots=1,
            max_context_tokens=context_tokens(config),
            target_vocab_tokens=len(shared.embedding_VH),
        )
    drafter.prepare(state, manifest.number)()
    return drafter


def hidden_dtype(config: Config) -> torch.dtype:
    """Of the target, and so of its hidden states."""
    return torch.bfloat16 if config.target.dtype == "bfloat16" else torch.float32


def own_folder(config: Config, folder: Path) -> Config:
    """The same configuration with its drafter versions and checkpoints in another state folder."""
    return config.model_copy(update={"state_dir": folder})
