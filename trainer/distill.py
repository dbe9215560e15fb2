"""Offline distillation: the online trainer, fed by the target's own answers instead of the outcome stream."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from osd.assemble import open_engine, open_store
from osd.config import Config
from osd.models.resolve import ResolvedTarget
from osd.store_paths import checkpoint_dir
from osd.types import Event, WeightManifest
from trainer.build import build_student
from trainer.loop import Trainer
from trainer.self_generated import Collector, SelfGenerated


@dataclass(frozen=True, slots=True)
class DistillProgress:
    """How far it is."""

    answers: int
    """Made so far, by earlier runs too."""
    output_tokens: int
    """Made by this run."""
    trained_tokens: int
    steps: int
    loss: float | None
    held_out_acceptance: float | None
    version: int


def distill(
    config: Config,
    resolved: ResolvedTarget,
    prompts: Sequence[tuple[int, ...]],
    *,
    num_answers: int,
    max_tokens: int,
    passes: float,
    on_progress: Callable[[DistillProgress], None] = lambda progress: None,
    on_event: Callable[[Event], None] = lambda event: None,
) -> WeightManifest:
    """Train until every answer is made and was trained on; publish whatever passes the gate on the way.

    Killed and called again, it goes on from its checkpoint.

    Args:
        config: target, drafter and trainer sections are used; the store's latest version is trained on.
        resolved: the target.
        prompts: token ids.
        num_answers: see `SelfGenerated`.
        max_tokens: see `SelfGenerated`.
        passes: how often each answer's tokens are trained on, on average.
        on_progress: told after every step.
        on_event: told of publishes and refusals.

    Returns:
        The latest version at the end.

    Raises:
        OsdError: the target or the drafter cannot be had.
    """
    collector = Collector()
    plain = config.speculation.model_copy(update={"enabled": False})
    engine = open_engine(config.model_copy(update={"speculation": plain}), recorder=collector)
    store = open_store(config, resolved)
    latest = store.latest()
    assert latest is not None  # the engine published one where there was none
    source = SelfGenerated(
        engine,
        collector,
        prompts,
        num_answers=num_answers,
        max_tokens=max_tokens,
        wants_more=lambda: caught_up() or trainer.status().state != "training",
    )
    trainer = Trainer(
        config.trainer,
        build_student(config, latest, resolved.folder),
        source,
        store,
        checkpoint_dir(config.state_dir, resolved.target_id, config.drafter.kind) / "offline",
        target_id=resolved.target_id,
        on_event=on_event,
    )
    trained_before = trainer.status().trained_tokens

    def caught_up() -> bool:
        return trainer.status().trained_tokens - trained_before >= passes * source.output_tokens

    source.skip_to(int(trainer.stream_position or -1) + 1)
    while True:
        status = trainer.run_once()
        on_progress(
            DistillProgress(
                answers=source.num_answered,
                output_tokens=source.output_tokens,
                trained_tokens=status.trained_tokens,
                steps=status.steps,
                loss=status.loss,
                held_out_acceptance=status.gate.get("candidate"),
                version=status.published_version,
            )
        )
        if source.exhausted and (caught_up() or status.state != "training"):
            break
    trainer.publish_if_better()
    trainer.checkpoint()
    latest = store.latest()
    assert latest is not None
    return latest
