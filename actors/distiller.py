"""The distiller actor: runs the trainer of `trainer/` in a process of the lowest priority."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from itertools import count
from typing import TYPE_CHECKING, Protocol

from actors.ask import Ask, ask_by_ray
from actors.event_log import EventLog
from actors.names import ActorNames
from osd.config.settings import Config
from osd.machine.logs import join_logs
from osd.machine.memory import trim_heap
from osd.monitor.wishes import TrainerWishes
from osd.records.errors import OsdError
from osd.records.events import Event
from osd.records.status import TrainerStatus
from trainer.spare import leaves_room, lower_priority

if TYPE_CHECKING:
    from trainer.loop import Trainer

_log = logging.getLogger(__name__)
_GIVE_BACK_EVERY = 20
"""In polls of the engine, that is, every ten seconds."""
_ASK_TIMEOUT_S = 10.0
_ROOM_S = 3.0
"""How long the engine leaves room without being asked again: a distiller that died must not slow it down."""


class BuildTrainer(Protocol):
    """Makes a trainer."""

    def __call__(
        self,
        config: Config,
        redis_url: str,
        *,
        may_train: Callable[[], bool],
        on_event: Callable[[Event], None],
        stop: threading.Event,
    ) -> Trainer:
        """Load the drafter and open the outcome stream.

        Args:
            config: the whole configuration.
            redis_url: the Redis of the outcome stream.
            may_train: whether the engine leaves compute to spare; asked before each step.
            on_event: called on a publish or a refusal by the gate.
            stop: set when the trainer has to end.

        Raises:
            OsdError: the trainer cannot start yet.
        """
        ...


class DistillerActor:
    """Trains while the engine has compute to spare.

    Args:
        config: the whole configuration.
        redis_url: the Redis of the outcome stream.
        names: of the engine, which is polled for its utilisation (a few times a second, never by the training thread),
            and of the supervisor, which knows whether the operator paused training.
        ask: calls these two actors.
        build: makes the trainer; None: the one that learns from the stream in Redis.
        ask_interval_s: pause between two polls.
        retry_s: pause after the trainer could not start.
    """

    def __init__(
        self,
        config: Config,
        redis_url: str,
        names: ActorNames,
        *,
        ask: Ask = ask_by_ray,
        build: BuildTrainer | None = None,
        ask_interval_s: float = 0.5,
        retry_s: float = 2.0,
    ) -> None:
        join_logs("distiller")
        self._ask, self._build = ask, build or _build
        self._ask_interval_s, self._retry_s = ask_interval_s, retry_s
        lower_priority(config.trainer.nice)
        # Few batches have the same shape, so oneDNN's cached primitives (one per shape) would rarely be used again.
        os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = "16"
        self._config, self._redis_url, self._names = config, redis_url, names
        self._events = EventLog()
        self._trainer: Trainer | None = None
        self._problem = ""
        self._utilisation = 1.0
        self._has_room = False
        """The engine pauses now and then, so that training can run."""
        self._paused = False
        self._wishes: TrainerWishes | None = None
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._train, self._watch)]
        for thread in self._threads:
            thread.start()

    def status(self) -> TrainerStatus:
        """A snapshot of the trainer's status."""
        if self._trainer is None:
            return TrainerStatus(state="waiting_for_data", message=self._problem or "starting")
        return self._trainer.status()

    def set_paused(self, paused: bool) -> None:
        """Pause or resume training. After a restart, `_watch` asks the supervisor for the operator's last choice."""
        self._paused = paused
        if self._trainer is not None:
            (self._trainer.pause if paused else self._trainer.resume)()

    def events(self, limit: int) -> list[Event]:
        """The newest events, oldest first."""
        return self._events.newest(limit)

    def ping(self) -> int:
        """This process's id."""
        return os.getpid()

    def close(self) -> None:
        """Stop training after the current step, and save a checkpoint."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _may_train(self) -> bool:
        return self._has_room or leaves_room(self._utilisation, self._config.trainer)

    def _share_to_ask_for(self) -> float:
        """Share of the engine's time that training is worth now: none where the engine is idle enough as it is."""
        trainer = self._trainer
        if trainer is None or self._paused or leaves_room(self._utilisation, self._config.trainer):
            return 0.0
        return self._config.trainer.max_serving_cost * trainer.worth

    def _watch(self) -> None:
        """Poll the engine's utilisation, and the supervisor for whether training is paused.

        waits for: the interval between two polls
        is unblocked by: `close`
        on failure: an engine that does not answer is loading or overloaded, so training stops meanwhile
        """
        for number in count():
            if self._stop.is_set():
                return
            if number % _GIVE_BACK_EVERY == 0:
                trim_heap()
            try:
                paused = self._ask(self._names.supervisor, "training_is_paused", self._paused, timeout_s=_ASK_TIMEOUT_S)
                if paused != self._paused:
                    self.set_paused(paused)
                share = self._share_to_ask_for()
                self._utilisation = self._ask(
                    self._names.engine, "leave_room", share, _ROOM_S, timeout_s=_ASK_TIMEOUT_S
                )
                self._has_room = share > 0.0
            except Exception:  # noqa: BLE001 - while an actor restarts, Ray raises many types
                self._utilisation, self._has_room = 1.0, False
            self._follow_wishes()
            self._stop.wait(self._ask_interval_s)

    def _follow_wishes(self) -> None:
        """Ask the supervisor what an operator wants of the trainer, and do it."""
        trainer = self._trainer
        if trainer is None:
            return
        try:
            wishes: TrainerWishes = self._ask(self._names.supervisor, "trainer_wishes", timeout_s=_ASK_TIMEOUT_S)
        except Exception:  # noqa: BLE001 - while an actor restarts, Ray raises many types
            return
        before, self._wishes = self._wishes, wishes
        trainer.demands.frozen = wishes.frozen
        if before is None or before.session != wishes.session:
            return  # what was asked of an earlier process has been done, or is asked again
        if wishes.num_trainings > before.num_trainings:
            trainer.demands.train_now()
        if wishes.num_publishes > before.num_publishes:
            trainer.demands.publish()

    def _train(self) -> None:
        """Build the trainer, retrying until that works, and run it."""
        import torch

        torch.set_num_threads(self._config.trainer.threads)
        while not self._stop.is_set():
            try:
                trainer = self._build(
                    self._config,
                    self._redis_url,
                    may_train=self._may_train,
                    on_event=self._events.add,
                    stop=self._stop,
                )
            except Exception as error:
                _log.warning("the trainer cannot start", exc_info=not isinstance(error, OsdError))
                self._problem = f"the trainer cannot start: {error}"
                self._stop.wait(self._retry_s)
                continue
            self._trainer = trainer
            self.set_paused(self._paused)
            trainer.run_forever(self._stop)


def _build(
    config: Config,
    redis_url: str,
    *,
    may_train: Callable[[], bool],
    on_event: Callable[[Event], None],
    stop: threading.Event,
) -> Trainer:
    """The trainer in service (see `BuildTrainer`)."""
    from osd.assembly.drafter import open_store
    from osd.io.outcome_stream import RedisOutcomeStream
    from osd.loading.resolve import resolve_target
    from trainer.build import build_trainer

    outcomes = config.outcomes
    resolved = resolve_target(config.target.model, config.state_dir)
    source = RedisOutcomeStream(
        redis_url, outcomes.stream, max_entries=outcomes.max_entries, max_bytes=outcomes.max_bytes
    )
    return build_trainer(
        config,
        resolved.folder,
        open_store(config, resolved),
        source,
        target_id=resolved.target_id,
        may_train=may_train,
        on_event=on_event,
        stop=stop,
    )
