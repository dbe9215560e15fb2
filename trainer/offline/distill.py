"""Offline distillation: makes the target's answers to prompts, trains on them, and publishes if the gate passes."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from osd.assembly.drafter import ensure_first_version, hidden_layers_for, open_store
from osd.config.paths import answers_dir, checkpoint_dir
from osd.config.settings import Config
from osd.loading.resolve import ResolvedTarget
from osd.ports.weight_store import WeightStore
from osd.records.events import Event
from osd.records.version import WeightManifest
from trainer.build import build_student
from trainer.offline.answers import AnswerFolder, answers_key, make_answers, open_answering
from trainer.offline.offline import OfflineTrainer


@dataclass(frozen=True, slots=True)
class DistillProgress:
    """Progress of a distillation."""

    answers: int
    """Answers on disk, those of earlier runs included."""
    trained_share: float = 0.0
    """Share done of all passes."""
    trained_tokens: int = 0
    steps: int = 0
    loss: float | None = None
    held_out_acceptance: tuple[float, ...] = ()
    """By depth, as last measured."""


def distill(
    config: Config,
    resolved: ResolvedTarget,
    prompts: Sequence[tuple[int, ...]],
    *,
    num_answers: int,
    max_tokens: int,
    passes: float,
    checkpoint_every_s: float = 60.0,
    on_progress: Callable[[DistillProgress], None] = lambda progress: None,
    on_event: Callable[[Event], None] = lambda event: None,
) -> WeightManifest:
    """Make answers, train on them, and publish the result if it passes the gate against the latest version.

    A killed run continues, when called again, from the answers on disk and from its checkpoint.

    Args:
        config: its target, engine, drafter and trainer sections are used; training starts from the latest version.
        resolved: the target.
        prompts: token ids.
        num_answers: see `make_answers`.
        max_tokens: see `make_answers`.
        passes: how often each answer is trained on.
        checkpoint_every_s: least time between two checkpoints.
        on_progress: called after every file of answers and every training step.
        on_event: called on a publish or a refusal by the gate.

    Returns:
        The latest version afterwards.

    Raises:
        OsdError: the target or the drafter cannot be loaded, or there are too few prompts.
    """
    store = open_store(config, resolved)
    key = answers_key(resolved.folder, prompts, max_tokens, _reads(config, resolved, store))
    folder = AnswerFolder(answers_dir(config.state_dir, resolved.target_id, key))
    if len(folder.numbers() & set(range(num_answers))) < num_answers:
        _make_answers(config, folder, prompts, num_answers, max_tokens, on_progress)
    ensure_first_version(config, resolved, store)
    latest = store.latest()
    assert latest is not None
    answers = [answer for answer in folder if int(answer.request_id) < num_answers]
    trainer = OfflineTrainer(
        config.trainer,
        build_student(config, latest, resolved.folder),
        store,
        checkpoint_dir(config.state_dir, resolved.target_id, config.drafter.kind) / f"offline-{key}",
        answers,
        passes=passes,
        on_event=on_event,
    )
    acceptance: tuple[float, ...] = ()
    saved_at_s = time.monotonic()
    while trainer.progress < 1.0:
        result = trainer.step()
        if trainer.steps % config.trainer.gate_every_steps == 0:
            acceptance = trainer.measure().acceptance_by_depth
        on_progress(
            DistillProgress(
                answers=len(answers),
                trained_share=trainer.progress,
                trained_tokens=trainer.trained_tokens,
                steps=trainer.steps,
                loss=result.loss,
                held_out_acceptance=acceptance,
            )
        )
        if time.monotonic() - saved_at_s >= checkpoint_every_s:
            trainer.checkpoint()
            saved_at_s = time.monotonic()
    trainer.checkpoint()
    trainer.publish_if_better()
    latest = store.latest()
    assert latest is not None
    return latest


def _reads(config: Config, resolved: ResolvedTarget, store: WeightStore) -> tuple[object, ...]:
    """What the drafter reads of the target, for `answers_key`: one drafter's answers lack what another needs."""
    kind = config.drafter.kind
    return () if kind == "feature" else (kind, *hidden_layers_for(config, resolved, store))


def _make_answers(
    config: Config,
    folder: AnswerFolder,
    prompts: Sequence[tuple[int, ...]],
    num_answers: int,
    max_tokens: int,
    on_progress: Callable[[DistillProgress], None],
) -> None:
    """A function of its own, so that the target's memory is freed before training begins."""
    engine, collector = open_answering(config)
    make_answers(
        engine,
        collector,
        folder,
        prompts,
        num_answers=num_answers,
        max_tokens=max_tokens,
        on_progress=lambda made: on_progress(DistillProgress(answers=made)),
    )
    del engine
    gc.collect()
