"""The distiller actor: runs the trainer of `trainer/` on a thread of the lowest priority."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable
from itertools import count
from typing import TYPE_CHECKING, Protocol

from actors.calls.ask import Ask, ask_by_ray
from actors.calls.names import ActorNames
from actors.process.event_log import EventLog
from actors.process.node import node_id
from osd.config.settings import Config
from osd.fleet.heartbeat import DistillerOrders, DistillerReport
from osd.fleet.spare import leaves_room
from osd.io.guards.lease import Lease
from osd.machine.logs import join_logs
from osd.machine.memory import trim_heap
from osd.monitor.wishes import TrainerWishes
from osd.ports.lease import TrainingLease
from osd.records.errors import OsdError
from osd.records.events import Event
from osd.records.status import TrainerStatus
from trainer.loop.spare import lower_priority

if TYPE_CHECKING:
    from trainer.loop.loop import Trainer

_log = logging.getLogger(__name__)
_GIVE_BACK_EVERY = 20
"""In reports to the supervisor, that is, every ten seconds."""
_ASK_TIMEOUT_S = 10.0


class BuildTrainer(Protocol):
    """Makes a trainer."""

    def __call__(
        self,
        config: Config,
        redis_url: str,
        *,
        may_train: Callable[[], bool],
        lease: TrainingLease | None,
        on_event: Callable[[Event], None],
        stop: threading.Event,
    ) -> Trainer:
        """Load the drafter and open the outcome stream.

        Args:
            config: the whole configuration.
            redis_url: the Redis of the outcome stream.
            may_train: whether the engines leave compute to spare; asked before each step.
            lease: see `trainer.loop.loop.Trainer`.
            on_event: called on a publish or a refusal by the gate.
            stop: set when the trainer has to end.

        Raises:
            OsdError: the trainer cannot start yet.
        """
        ...


class DistillerActor:
    """Trains while the engines on its device have compute to spare.

    Args:
        config: the whole configuration.
        redis_url: the Redis of the outcome stream.
        names: of the supervisor, which knows how busy the engines on this device are, and whether the operator paused
            training.
        ask: calls it.
        build: makes the trainer; None: the one that learns from the stream in Redis.
        ask_interval_s: pause between two reports to the supervisor.
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
        # Few batches have the same shape, so oneDNN's cached primitives (one per shape) would rarely be used again.
        os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = "16"
        self._config, self._redis_url, self._names = config, redis_url, names
        self._events = EventLog()
        self._trainer: Trainer | None = None
        self._is_starting = True
        """It loads libraries or weights, which at its priority would take minutes beside a busy engine."""
        self._problem = ""
        self._node, self._device = node_id(), ""
        self._utilisation = 1.0
        """Of the busiest engine on this device; 1 while that is not known."""
        self._has_room = False
        """Busy engines on this device pause now and then, so that training can run."""
        self._paused = False
        self._wishes: TrainerWishes | None = None
        self._stop = threading.Event()
        self._ending = threading.Event()
        """Ends the present trainer."""
        self._lease = self._new_lease()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._train, self._watch)]
        for thread in self._threads:
            thread.start()

    def status(self) -> TrainerStatus:
        """A snapshot of the trainer's status."""
        if self._trainer is None:
            waits_for = self._lease.problem if self._lease else ""
            return TrainerStatus(state="waiting_for_data", message=self._problem or waits_for or "starting")
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
        self._ending.set()
        for thread in self._threads:
            thread.join()
        if self._lease is not None:
            self._lease.close()

    def _new_lease(self) -> Lease | None:
        """The right to train on this stream; None without a Redis."""
        if not self._redis_url:
            return None
        where = f"{socket.gethostname()}, process {os.getpid()}"
        lease = Lease(self._redis_url, self._config.outcomes.stream, where, on_deposed=self._deposed)
        lease.start()
        return lease

    def _deposed(self) -> None:
        """Another distiller has trained meanwhile: go on from its checkpoint, once the lease is held again."""
        self._ending.set()

    def _may_train(self) -> bool:
        return self._has_room or leaves_room(self._utilisation, self._config.trainer)

    def _wanted_share(self) -> float:
        """Share of an engine's time that training is worth now: none where the engines are idle enough as it is."""
        if self._paused or leaves_room(self._utilisation, self._config.trainer):
            return 0.0
        worth = 1.0 if self._is_starting else 0.0 if self._trainer is None else self._trainer.worth
        return self._config.trainer.max_serving_cost * worth

    def _watch(self) -> None:
        """Report to the supervisor, and obey: how busy engines are, and whether training is paused.

        waits for: the interval between two reports
        is unblocked by: `close`
        on failure: without a supervisor nobody knows how busy engines are, so training stops meanwhile
        """
        for number in count():
            if self._stop.is_set():
                return
            if number % _GIVE_BACK_EVERY == 0:
                trim_heap()
            try:
                self._report()
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

    def _report(self) -> None:
        report = DistillerReport(
            node=self._node,
            device=self._device,
            wanted_share=self._wanted_share(),
            is_paused=self._paused,
            status=self.status(),
        )
        orders: DistillerOrders = self._ask(
            self._names.supervisor, "report_distiller", report, timeout_s=_ASK_TIMEOUT_S
        )
        if orders.is_paused != self._paused:
            self.set_paused(orders.is_paused)
        self._utilisation, self._has_room = orders.utilisation, orders.share > 0.0

    def _train(self) -> None:
        """Build the trainer, retrying until that works, and run it.

        Only this thread has a low priority: if reports starved beside a busy engine, that would never make room.
        """
        lower_priority(self._config.trainer.nice)
        import torch

        from osd.loading.causal_lm import choose_device
        from osd.machine.device_id import device_id

        torch.set_num_threads(self._config.trainer.threads)
        self._device = device_id(choose_device(self._config.trainer.device))
        while not self._stop.is_set():
            self._is_starting = False
            if self._lease is not None and not self._lease.wait(self._stop):
                return
            self._is_starting = True
            try:
                trainer = self._build(
                    self._config,
                    self._redis_url,
                    may_train=self._may_train,
                    lease=self._lease,
                    on_event=self._events.add,
                    stop=self._ending,
                )
            except Exception as error:
                _log.warning("the trainer cannot start", exc_info=not isinstance(error, OsdError))
                self._problem = f"the trainer cannot start: {error}"
                self._is_starting = False
                self._stop.wait(self._retry_s)
                continue
            self._problem, self._trainer, self._is_starting = "", trainer, False
            self.set_paused(self._paused)
            trainer.run_forever(self._ending)
            if self._lease is not None and not self._stop.is_set():
                self._trainer = None
                self._ending.clear()
                self._lease.begin_again()


def _build(
    config: Config,
    redis_url: str,
    *,
    may_train: Callable[[], bool],
    lease: TrainingLease | None,
    on_event: Callable[[Event], None],
    stop: threading.Event,
) -> Trainer:
    """The trainer in service (see `BuildTrainer`)."""
    from osd.assembly.drafter import open_store
    from osd.io.outcome_stream import RedisOutcomeStream
    from osd.loading.resolve import configured_target
    from trainer.build import build_trainer

    outcomes = config.outcomes
    resolved = configured_target(config)
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
        lease=lease,
        on_event=on_event,
        stop=stop,
    )
