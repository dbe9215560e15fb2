"""Builds a trainer from a configuration."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from osd.config.paths import checkpoint_path
from osd.config.settings import Config, ConfigError
from osd.config.trainer import TrainerConfig
from osd.drafters.create import chain_config_of, new_drafter_model
from osd.io.domains.listed import open_domains
from osd.io.domains.store import open_versions
from osd.io.url_folder import open_folder
from osd.kernels.reference.drafting.eagle3_net import Eagle3Config
from osd.kernels.reference.drafting.feature_net import FeatureConfig
from osd.loading.causal_lm import choose_device, multiplies_bfloat16
from osd.loading.shared_rows import load_shared_rows
from osd.ports.lease import TrainingLease
from osd.ports.outcomes import OutcomeSource
from osd.ports.weight_store import WeightStore
from osd.records.drafter_id import drafter_name
from osd.records.errors import OsdError
from osd.records.events import Event
from osd.records.shared_rows import SharedRows
from osd.records.version import WeightManifest
from trainer.domains.domains import DomainParts, DomainTrainers
from trainer.loop.loop import Trainer
from trainer.losses.losses import LOSSES
from trainer.students.eagle3_student import Eagle3Student
from trainer.students.feature_student import FeatureStudent
from trainer.students.model_student import ModelStudent
from trainer.students.student import Student

_POLL_S = 0.2


def build_trainer(
    config: Config,
    target_folder: Path,
    store: WeightStore,
    source: OutcomeSource,
    *,
    target_id: str,
    may_train: Callable[[], bool] = lambda: True,
    lease: TrainingLease | None = None,
    on_event: Callable[[Event], None] = lambda event: None,
    stop: threading.Event | None = None,
    wait_s: float = 600.0,
) -> Trainer:
    """A trainer for the configured drafter; waits first for the version that the engine publishes at its start.

    Threads and priority belong to the process: its owner sets `trainer.threads` and `trainer.nice`.

    Args:
        config: the whole configuration.
        target_folder: the target's model folder; only its embedding and head are read.
        store: the versions of this kind of drafter for this target.
        source: the outcome stream.
        target_id: the name under which the target's outcomes are recorded.
        may_train: see `Trainer`.
        lease: see `Trainer`.
        on_event: see `Trainer`.
        stop: ends the wait.
        wait_s: longest wait.

    Raises:
        OsdError: no version was published in time, the target cannot be read, the optimizer is unknown, or
            `trainer.rejected_loss` would have no effect.
    """
    _check_rejected(config)
    manifest = _wait_for_first_version(store, stop or threading.Event(), wait_s)
    make = partial(DomainTrainers, domain_parts(config, target_id)) if config.drafter.max_domains else Trainer
    return make(
        config.trainer,
        build_student(config, manifest, target_folder),
        source,
        store,
        open_folder(config, checkpoint_path(target_id, config.drafter.kind)),
        target_id=target_id,
        may_train=may_train,
        lease=lease,
        on_event=on_event,
    )


def domain_parts(config: Config, target_id: str) -> DomainParts:
    """What trainers of domains are made of, for a target's configured kind of drafter."""

    def name(domain: str) -> str:
        return drafter_name(config.drafter.kind, domain)

    return DomainParts(
        most=config.drafter.max_domains,
        listed=open_domains(config, target_id),
        store_of=lambda domain: open_versions(config, target_id, name(domain)),
        folder_of=lambda domain: open_folder(config, checkpoint_path(target_id, name(domain))),
    )


def build_student(config: Config, manifest: WeightManifest, target_folder: Path) -> Student:
    """A student of a published version's kind and shape; the trainer loads the weights.

    Raises:
        OsdError: the version is of another kind of drafter, or its model cannot be loaded.
    """
    if manifest.kind != config.drafter.kind:
        raise OsdError(
            f"version {manifest.number} is a {manifest.kind!r} drafter, configured is {config.drafter.kind!r}"
        )
    if config.drafter.kind != "model":
        trusts = config.target.trust_remote_code
        shared = load_shared_rows(target_folder, torch.bfloat16, trust_remote_code=trusts)
        return build_feature_student(config.trainer, chain_config_of(manifest.kind, manifest.config), shared)
    device = choose_device(config.trainer.device)
    model = new_drafter_model(config, target_folder).to(device)
    loss, depths = LOSSES[config.trainer.loss], config.trainer.unroll_steps
    return ModelStudent(model, loss=loss, depths=depths, compute_dtype=_compute_dtype(device))


def build_feature_student(
    config: TrainerConfig, net: FeatureConfig | Eagle3Config, shared: SharedRows
) -> FeatureStudent:
    """A `feature` or `eagle3` drafter's student on the configured device, with weights still to be loaded.

    Args:
        config: the `trainer` section.
        net: the network's configuration.
        shared: the target's embedding and head, on any device.
    """
    device = choose_device(config.device)
    kind = Eagle3Student if isinstance(net, Eagle3Config) else FeatureStudent
    return kind(
        net.network().to(device),
        SharedRows(*(None if rows is None else rows.to(device) for rows in shared)),  # type: ignore[arg-type]
        loss=LOSSES[config.loss],
        unroll_steps=config.unroll_steps,
        rejected_loss=LOSSES.get(config.rejected_loss),
        compute_dtype=_compute_dtype(device),
    )


def _check_rejected(config: Config) -> None:
    if config.trainer.rejected_loss == "none":
        return
    if not config.outcomes.rejected_top_k:
        raise ConfigError("trainer.rejected_loss needs what outcomes.rejected_top_k records; set that to 8, say")
    if config.drafter.kind == "model":
        raise ConfigError("trainer.rejected_loss is for chains of features; drafter.kind 'model' needs it to be 'none'")


def _compute_dtype(device: torch.device) -> torch.dtype:
    """Autocast's dtype: bfloat16, or float32 where a device lacks bfloat16 (float16 would need gradient scaling)."""
    return torch.bfloat16 if multiplies_bfloat16(device) else torch.float32


def _wait_for_first_version(store: WeightStore, stop: threading.Event, wait_s: float) -> WeightManifest:
    deadline_s = time.monotonic() + wait_s
    while (manifest := store.latest()) is None:
        if stop.wait(_POLL_S) or time.monotonic() > deadline_s:
            raise OsdError("no drafter version to train from was published; is the engine running?")
    return manifest
