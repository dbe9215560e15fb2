"""The supervisor actor: watches the other actors, counts their restarts, and stores the operator's choices.

Ray itself restarts a dead actor (`max_restarts=-1`); the supervisor notices by the changed process id, and emits an
event. It is light: it never imports torch.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import replace

from actors.calls.ask import Ask, ask_by_ray
from actors.process.event_log import EventLog
from actors.process.resident_memory import RayMemory, resident_bytes
from actors.supervisor.admin_sessions import AdminSessions
from actors.supervisor.fleet import Fleet
from actors.supervisor.monitor import open_monitor
from osd.config.settings import Config
from osd.fleet.heartbeat import DistillerOrders, DistillerReport, EngineOrders, EngineReport
from osd.machine.logs import join_logs
from osd.monitor.alerts import AlertsAnswer
from osd.monitor.buckets import HistoryAnswer, HistoryQuery
from osd.monitor.wishes import BadWishError, TrainerWishes, Wishes
from osd.records.events import Event
from osd.records.status import FleetStatus
from osd.records.version import WeightManifest

_PING_TIMEOUT_S = 5.0


class SupervisorActor:
    """Watches the other actors.

    Args:
        watched: each actor's name in reports, and its name in Ray.
        training_paused: whether the operator paused training; None if unknown.
        config: the whole configuration; None: the defaults, and no drafter versions are judged.
        redis_url: where the history and the outcome stream are; empty: history in memory only.
        cluster: address of the Ray cluster; empty: a local Ray.
        ask: calls the other actors.
        ping_interval_s: pause between two pings of one actor.
    """

    def __init__(
        self,
        watched: Mapping[str, str],
        training_paused: bool | None = None,
        config: Config | None = None,
        redis_url: str = "",
        cluster: str = "",
        *,
        ask: Ask = ask_by_ray,
        ping_interval_s: float = 1.0,
    ) -> None:
        join_logs("supervisor")
        self._ask, self._ping_interval_s = ask, ping_interval_s
        self._events = EventLog()
        self._pids: dict[str, int] = {}
        self._ray_memory = RayMemory()
        self._restarts = dict.fromkeys(watched, 0)
        self._paused = training_paused
        self._session = uuid.uuid4().hex[:16]
        self._monitor = open_monitor((config or Config()).monitor, redis_url, watched, ask=ask)
        self._sessions = AdminSessions()
        self._num_trainings = self._num_publishes = 0
        self._fleet = Fleet(config, redis_url, cluster, self._note)
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._watch, args=one, daemon=True) for one in watched.items()]
        for thread in self._threads:
            thread.start()

    def report(self, report: EngineReport) -> EngineOrders:
        """Take an engine's report, and answer with its orders."""
        wishes = self._monitor.wishes.now
        orders = EngineOrders(
            session=self._session,
            draining=report.engine_id in wishes.draining,
            lengths=wishes.lengths,
            drifting=self._monitor.drifting,
        )
        self._monitor.take(report)
        return self._fleet.take(report, orders)

    def farewell(self, engine_id: str) -> None:
        """An engine that reported ends now, as it was told to."""
        self._monitor.farewell(engine_id)

    def report_distiller(self, report: DistillerReport) -> DistillerOrders:
        """Take the distiller's report, and answer with its orders."""
        return self._fleet.take_distiller(report, bool(self.training_is_paused(report.is_paused)))

    def fleet_status(self) -> FleetStatus:
        """What was decided for all engines."""
        return replace(self._fleet.status(), events=self._monitor.num_events)

    def roll_back(self, to: int, reason: str, domain: str = "") -> WeightManifest:
        """Let every engine serve an older version again, of a domain's own drafter or (empty) of the base drafter.

        Raises what `Fleet.judge` and `VersionJudge.roll_back` raise.
        """
        return self._fleet.judge(domain).roll_back(to, reason)

    def pin(self, version: int, reason: str, domain: str = "") -> None:
        """Let every engine serve this version, whatever is published; for domain and errors see `roll_back`."""
        self._fleet.judge(domain).pin(version, reason)

    def unpin(self, domain: str = "") -> None:
        """Try newer versions again."""
        self._fleet.judge(domain).unpin()

    def engines(self) -> list[EngineReport]:
        """The latest report of every engine that reports, by engine id."""
        return self._fleet.engines()

    def history(self, query: HistoryQuery) -> HistoryAnswer:
        """Read the operator's history; raises BadRangeError."""
        return self._monitor.read(query)

    def alerts(self) -> AlertsAnswer:
        """Pending and firing alerts, and silenced rules."""
        return self._monitor.alerts()

    def acknowledge(self, name: str, subject: str, who: str) -> None:
        """Somebody takes care of an alert; raises UnknownAlertError."""
        self._monitor.acknowledge(name, subject, who)

    def silence(self, name: str, for_s: float, who: str) -> None:
        """Tell nobody about a rule's alerts for a while; raises UnknownAlertError."""
        self._monitor.silence(name, for_s, who)

    def recorded(self, from_s: float, to_s: float, limit: int) -> list[Event]:
        """The newest events of all processes in a range of time, oldest first, also from before a restart."""
        return self._monitor.history.events(from_s, to_s, limit)

    def wishes(self) -> Wishes:
        """What the operator has asked for."""
        return self._monitor.wishes.now

    def set_length(self, domain: str, length: int | None) -> Wishes:
        """Fix the speculation length of a domain's queries (None: chosen by goodput); raises BadWishError."""
        return self._monitor.wishes.change(lambda wishes: wishes.with_length(domain, length))

    def set_frozen(self, domain: str, frozen: bool) -> Wishes:
        """Learn from a domain no more, or again; raises BadWishError."""
        return self._monitor.wishes.change(lambda wishes: wishes.with_frozen(domain, frozen))

    def train_now(self) -> None:
        """Train until the gate's next decision, however busy the engines are."""
        self._num_trainings += 1

    def publish_candidate(self) -> None:
        """Publish the trainer's weights as they are, whatever the gate says."""
        self._num_publishes += 1

    def trainer_wishes(self) -> TrainerWishes:
        """What an operator wants of the trainer."""
        return TrainerWishes(
            session=self._session,
            frozen=self._monitor.wishes.now.frozen,
            num_trainings=self._num_trainings,
            num_publishes=self._num_publishes,
        )

    def set_draining(self, engine_id: str, draining: bool) -> Wishes:
        """Give an engine no new queries, or again; raises BadWishError, also for an engine that does not report."""
        present = [report.engine_id for report in self._fleet.engines()]
        if draining and engine_id not in present:
            raise BadWishError(
                f"engine {engine_id!r} does not report; the engines are {', '.join(present) or 'all away'}"
            )
        return self._monitor.wishes.change(lambda wishes: wishes.with_draining(engine_id, draining))

    def open_session(self, digest: str) -> None:
        """Open a session of the admin page, for all replicas of the HTTP ingress."""
        self._sessions.open(digest)

    def has_session(self, digest: str) -> bool:
        """Whether it is open and has not expired."""
        return self._sessions.has(digest)

    def close_session(self, digest: str) -> None:
        """End a session."""
        self._sessions.close(digest)

    def mark(self, event: Event) -> None:
        """Keep an event of another process in the history, such as an operator's action."""
        self._monitor.mark(event)

    def set_training_paused(self, paused: bool) -> None:
        """Store the operator's choice. The distiller asks for it regularly, so it survives every restart."""
        self._paused = paused
        self._monitor.wishes.change(lambda wishes: wishes.with_paused(paused))

    def training_is_paused(self, now: bool | None = None) -> bool | None:
        """Whether the operator paused training; None if unknown.

        Args:
            now: whether the distiller that asks is paused. If the operator's choice is unknown, since this actor was
                restarted, it is taken to be that, unless a stored pause still holds. None: somebody else asks.
        """
        if self._paused is None:
            self._paused = self._monitor.wishes.now.paused or now
        return self._paused

    def restarts(self) -> dict[str, int]:
        """Actor name to number of restarts. Of engines that Ray Serve replaces, those that were lost count."""
        return {"engine": self._monitor.num_lost_engines, **self._restarts}

    def processes(self) -> dict[str, int]:
        """Process name to resident bytes, for the actors on this machine and Ray's own processes here."""
        actors = {**self._pids, "supervisor": os.getpid()}
        return {**resident_bytes(actors), "ray": self._ray_memory.resident(without=actors.values())}

    def events(self, limit: int) -> list[Event]:
        """The newest events, oldest first."""
        return self._events.newest(limit)

    def ping(self) -> int:
        """This process's id."""
        return os.getpid()

    def close(self) -> None:
        """Stop watching."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._fleet.close()
        self._monitor.close()

    def _note(self, event: Event) -> None:
        self._events.add(event)
        self._monitor.mark(event)

    def _watch(self, name: str, actor_name: str) -> None:
        """Emit an event when an actor was restarted.

        consumes: the actor's answers to pings
        waits for: the interval between two pings
        is unblocked by: `close`
        on failure: an actor that does not answer is pinged again
        """
        while not self._stop.is_set():
            try:
                pid = self._ask(actor_name, "ping", timeout_s=_PING_TIMEOUT_S)
            except Exception:  # noqa: BLE001 - while an actor restarts, Ray raises many types
                pid = None
            if pid is not None:
                before, self._pids[name] = self._pids.get(name, pid), pid
                if pid != before:
                    self._restarts[name] += 1
                    message = f"{name} was restarted (process {before} -> {pid})"
                    self._note(Event(at_s=time.time(), kind="restart", message=message, data={"actor": name}))
            self._stop.wait(self._ping_interval_s)
