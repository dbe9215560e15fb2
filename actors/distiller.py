"""The distiller actor: the trainer in a process of the lowest priority. A shell; the work is in `trainer`."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

import ray

from actors.event_log import EventLog
from actors.names import ActorNames
from osd.config import Config
from osd.types import Event, OsdError, TrainerStatus

if TYPE_CHECKING:
    from trainer.loop import Trainer

_ASK_INTERVAL_S = 0.5
_RETRY_S = 2.0


class DistillerActor:
    """Trains while the engine has compute to spare.

    Args:
        config: everything.
        redis_url: where outcomes come from.
        names: of the engine, which is asked how busy it is (a few times a second, never by the training thread), and
            of the supervisor, which knows whether the operator paused training.
    """

    def __init__(self, config: Config, redis_url: str, names: ActorNames) -> None:
        os.nice(config.trainer.nice)
        self._config, self._redis_url, self._names = config, redis_url, names
        self._events = EventLog()
        self._trainer: Trainer | None = None
        self._problem = ""
        self._utilisation = 0.0
        self._stop = threading.Event()
        threading.Thread(target=self._watch_engine, name="osd-watch-engine", daemon=True).start()
        threading.Thread(target=self._train, name="osd-trainer", daemon=True).start()

    def status(self) -> TrainerStatus:
        """A snapshot."""
        if self._trainer is None:
            return TrainerStatus(state="waiting_for_data", message=self._problem or "starting")
        return self._trainer.status()

    def set_paused(self, paused: bool) -> None:
        """Pause or resume, as the operator wants it."""
        if self._trainer is not None:
            (self._trainer.pause if paused else self._trainer.resume)()

    def events(self, limit: int) -> list[Event]:
        """The newest events, oldest first."""
        return self._events.newest(limit)

    def ping(self) -> int:
        """The process id."""
        return os.getpid()

    def _may_train(self) -> bool:
        return self._utilisation < self._config.trainer.max_utilisation or self._config.trainer.max_utilisation >= 1.0

    def _watch_engine(self) -> None:
        """Keep `_utilisation` fresh. An engine that is away needs no compute."""
        while not self._stop.wait(_ASK_INTERVAL_S):
            try:
                engine = ray.get_actor(self._names.engine)
                self._utilisation = ray.get(engine.utilisation.remote(), timeout=10)
            except Exception:  # noqa: BLE001 - Ray raises many kinds while an actor restarts
                self._utilisation = 0.0

    def _train(self) -> None:
        """Build the trainer, trying again until it works, and run it."""
        import torch

        torch.set_num_threads(self._config.trainer.threads)
        while self._trainer is None and not self._stop.is_set():
            try:
                self._trainer = self._build()
            except OsdError as error:
                self._problem = str(error)
                self._stop.wait(_RETRY_S)
        if self._trainer is not None:
            self._trainer.run_forever(self._stop)

    def _build(self) -> Trainer:
        from osd.assemble import open_store
        from osd.io.outcome_stream import RedisOutcomeStream
        from osd.models.resolve import resolve_target
        from trainer.build import build_trainer

        config, outcomes = self._config, self._config.outcomes
        resolved = resolve_target(config.target.model, config.state_dir)
        source = RedisOutcomeStream(
            self._redis_url, outcomes.stream, max_entries=outcomes.max_entries, max_bytes=outcomes.max_bytes
        )
        trainer = build_trainer(
            config,
            resolved.folder,
            open_store(config, resolved),
            source,
            target_id=resolved.target_id,
            may_train=self._may_train,
            on_event=self._events.add,
            stop=self._stop,
        )
        if ray.get(ray.get_actor(self._names.supervisor).training_is_paused.remote()):
            trainer.pause()
        return trainer
