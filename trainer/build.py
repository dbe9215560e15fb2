"""Putting a trainer together from a configuration."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch

from osd.config import Config
from osd.drafters.create import new_drafter_model
from osd.drafters.feature_net import FeatureConfig, FeatureNet, SharedRows
from osd.models.loading import choose_device, choose_dtype
from osd.models.shared_rows import load_shared_rows
from osd.protocols import OutcomeSource, WeightStore
from osd.store_paths import checkpoint_dir
from osd.types import Event, OsdError, WeightManifest
from trainer.feature_student import FeatureStudent
from trainer.loop import Trainer
from trainer.losses import LOSSES
from trainer.model_student import ModelStudent
from trainer.student import Student

_POLL_S = 0.2


def build_trainer(
    config: Config,
    target_folder: Path,
    store: WeightStore,
    source: OutcomeSource,
    *,
    target_id: str,
    may_train: Callable[[], bool] = lambda: True,
    on_event: Callable[[Event], None] = lambda event: None,
    stop: threading.Event | None = None,
    wait_s: float = 600.0,
) -> Trainer:
    """A trainer for the configured drafter, waiting first for the version that the engine publishes at its start.

    Threads and priority belong to the process: its owner sets `trainer.threads` and `trainer.nice`.

    Args:
        config: everything.
        target_folder: the target's files; only its embedding and head are read.
        store: of this target and kind of drafter.
        source: the outcome stream.
        target_id: the name under which the target's outcomes are recorded.
        may_train: see `Trainer`.
        on_event: see `Trainer`.
        stop: ends the wait.
        wait_s: longest wait.

    Raises:
        OsdError: no version appeared in time, the target cannot be read, or the optimizer is unknown.
    """
    manifest = _wait_for_first_version(store, stop or threading.Event(), wait_s)
    return Trainer(
        config.trainer,
        build_student(config, manifest, target_folder),
        source,
        store,
        checkpoint_dir(config.state_dir, target_id, config.drafter.kind),
        target_id=target_id,
        may_train=may_train,
        on_event=on_event,
    )


def build_student(config: Config, manifest: WeightManifest, target_folder: Path) -> Student:
    """The student that fits a published version; its weights are loaded by the trainer.

    Raises:
        OsdError: the version is of another kind of drafter, or a model cannot be had.
    """
    if manifest.kind != config.drafter.kind:
        raise OsdError(
            f"version {manifest.number} is a {manifest.kind!r} drafter, configured is {config.drafter.kind!r}"
        )
    device = choose_device(config.trainer.device)
    # Autocast to float16 would need gradient scaling, so a device without bfloat16 computes in float32.
    compute_dtype = choose_dtype("auto", device)
    compute_dtype = torch.bfloat16 if compute_dtype == torch.bfloat16 else torch.float32
    loss, depths = LOSSES[config.trainer.loss], config.trainer.unroll_steps
    if config.drafter.kind == "model":
        model = new_drafter_model(config, target_folder).to(device)
        return ModelStudent(model, loss=loss, depths=depths, compute_dtype=compute_dtype)
    shared = load_shared_rows(target_folder, torch.bfloat16)
    shared = SharedRows(*(None if rows is None else rows.to(device) for rows in shared))  # type: ignore[arg-type]
    net = FeatureNet(FeatureConfig(**manifest.config)).to(device)
    return FeatureStudent(net, shared, loss=loss, unroll_steps=depths, compute_dtype=compute_dtype)


def _wait_for_first_version(store: WeightStore, stop: threading.Event, wait_s: float) -> WeightManifest:
    deadline_s = time.monotonic() + wait_s
    while (manifest := store.latest()) is None:
        if stop.wait(_POLL_S) or time.monotonic() > deadline_s:
            raise OsdError("no drafter version to train from was published; is the engine running?")
    return manifest
