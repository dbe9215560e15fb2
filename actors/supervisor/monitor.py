"""The supervisor's monitor: writes the history from what engines and the trainer report, and follows the alert rules.

consumes: engines' reports (`take`); the trainer's status and the actors' events, which it asks for
waits for: the interval between two looks
is unblocked by: `close`
on failure: an actor that does not answer is asked again; while Redis is away, the history is kept in memory
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import httpx

from actors.calls.ask import Ask
from actors.supervisor.earlier_run import EarlierRun
from actors.supervisor.kept_wishes import KeptWishes
from osd.config.monitor import MonitorConfig
from osd.fleet.heartbeat import EngineReport
from osd.io.history_store import RedisHistory
from osd.monitor.alerts import Alerts, AlertsAnswer
from osd.monitor.buckets import SAMPLES, TIERS, Figures, HistoryAnswer, HistoryQuery, Series
from osd.monitor.facts import Facts
from osd.monitor.history import History
from osd.monitor.store import HistoryStore
from osd.monitor.totals import Totals
from osd.monitor.webhook import Post, WebhookSender
from osd.records.events import Event
from osd.records.status import TrainerStatus

_log = logging.getLogger(__name__)
_ASK_TIMEOUT_S = 3.0
_REMEMBER_S = 30 * 86_400.0
"""How far back alerts, silences and acknowledgements are looked for after a restart."""
_MOST_REMEMBERED = 20_000
"""Events that are looked through for them: all that the history has."""
_SILENT_S = 15.0
_LOST_S = 60.0
"""An engine that has said nothing for so long, and did not say that it ends, has died."""
_FLUSH_EVERY = 5
"""In looks."""
_POST_TIMEOUT_S = 10.0
_NUM_REMEMBERED = 2000


def post_by_http(url: str, body: bytes, headers: dict[str, str]) -> int:
    """Post to a webhook (see `osd.monitor.webhook.Post`); redirects are not followed."""
    try:
        return httpx.post(url, content=body, headers=headers, timeout=_POST_TIMEOUT_S).status_code
    except httpx.HTTPError as error:
        raise OSError(f"{type(error).__name__}: {error}") from None


class Monitor:
    """The history and the alerts of one service.

    Args:
        config: section `monitor`.
        store: where the history is kept; None: in memory only.
        watched: the actors' names in reports, and the names by which they are asked.
        ask: calls them.
        trains: whether there is a trainer.
        post: posts to webhooks.
        clock_s: wall clock.
        monotonic_s: monotonic seconds, by which engines are missed.
        look_s: pause between two looks at the actors.
    """

    def __init__(
        self,
        config: MonitorConfig,
        store: HistoryStore | None,
        watched: Mapping[str, str],
        *,
        ask: Ask,
        post: Post = post_by_http,
        clock_s: Callable[[], float] = time.time,
        monotonic_s: Callable[[], float] = time.monotonic,
        look_s: float = 1.0,
    ) -> None:
        self._watched, self._ask = dict(watched), ask
        self._clock_s, self._monotonic_s, self._look_s = clock_s, monotonic_s, look_s
        self.history = History(store, max_domains=config.max_domains, clock_s=clock_s)
        self._earlier_run = EarlierRun(store, clock_s())
        self._alerts, self._totals = Alerts(config.alerts), Totals()
        self._longest_s = max((rule.window_s for rule in config.alerts), default=0.0)
        self.wishes = KeptWishes(store)
        self._lock = threading.Lock()
        """Guards totals and alerts."""
        secrets = {hook.secret_env: os.environ.get(hook.secret_env, "") for hook in config.webhooks if hook.secret_env}
        self._sender = WebhookSender(config.webhooks, secrets, post, self.mark, clock_s=clock_s)
        self._seen: dict[tuple[float, str, str], None] = {}
        """The newest events, the oldest first: at each look every actor tells its newest ones, most of them again."""
        self._began_s = clock_s()
        self._num_events: Counter[str] = Counter()
        self._trainer: TrainerStatus | None = None
        self._steps = (-1, clock_s())
        self._trained_s: float | None = None
        """The trainer's `training_s` at the last look; None before the first."""
        self._gate_decided_s = clock_s()
        self._heard_s: dict[str, float] = {}
        """Engine to when it last reported, in monotonic seconds."""
        self._listens_since_s = monotonic_s()
        self.num_lost_engines = 0
        """Engines of a cluster that died, since this process began."""
        self._knows_past = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="osd-monitor", daemon=True)
        self.wishes.settle()
        self._thread.start()

    def take(self, report: EngineReport) -> None:
        """Take an engine's report: its totals by series, and levels such as its utilisation."""
        engine = report.engine_id
        with self._lock:
            self._heard_s[engine] = self._monotonic_s()
            self._earlier_run.heard(self._clock_s() - report.uptime_s)
            added = self._totals.added(
                engine, report.incarnation, report.served, number=report.number, is_full=report.is_full
            )
        for series, figures in added:
            self.history.add(Series(series.domain, series.drafter, series.version, engine), figures)
        levels = {"utilisation": report.utilisation, "running": report.running, "waiting": report.waiting}
        self.history.add(Series(engine=engine), _as_samples(levels))

    def farewell(self, engine_id: str) -> None:
        """An engine ends, as it was told to."""
        with self._lock:
            self._heard_s.pop(engine_id, None)
            self._totals.forget(engine_id)

    def mark(self, event: Event) -> None:
        """Keep an event in the history; one that was kept already is not kept twice."""
        key = (event.at_s, event.kind, event.message)
        with self._lock:
            if key in self._seen:
                return
            self._seen[key] = None
            if len(self._seen) > _NUM_REMEMBERED:
                del self._seen[next(iter(self._seen))]
            if event.at_s >= self._began_s:  # actors tell their earlier events again to a supervisor that was restarted
                self._num_events[event.kind] += 1
        if event.kind in ("publish", "refuse"):
            self._gate_decided_s = max(self._gate_decided_s, event.at_s)
        self.history.mark(event)

    @property
    def num_events(self) -> dict[str, int]:
        """Kind to number of events that happened since this process began."""
        with self._lock:
            return dict(self._num_events)

    def read(self, query: HistoryQuery) -> HistoryAnswer:
        """Read the history; raises BadRangeError."""
        return self.history.read(query)

    def alerts(self) -> AlertsAnswer:
        """Pending and firing alerts, and silenced rules."""
        now_s = self._clock_s()
        with self._lock:
            return AlertsAnswer(
                alerts=self._alerts.current(now_s), silences=self._alerts.silences(now_s), rules=self._alerts.rules
            )

    def acknowledge(self, name: str, subject: str, who: str) -> None:
        """Somebody takes care of an alert; raises UnknownAlertError."""
        with self._lock:
            event = self._alerts.acknowledge(name, subject, who, self._clock_s())
        self.mark(event)

    def silence(self, name: str, for_s: float, who: str) -> None:
        """Tell nobody about a rule's alerts for a while; raises UnknownAlertError."""
        with self._lock:
            event = self._alerts.silence(name, for_s, who, self._clock_s())
        self.mark(event)

    def close(self) -> None:
        """Write what waits, and stop."""
        self._stop.set()
        self._thread.join()
        self._sender.close()
        self._flush()

    def _run(self) -> None:
        number = 0
        while not self._stop.wait(self._look_s):
            number += 1
            try:
                self._look()
                if number % _FLUSH_EVERY == 1:
                    self._flush()
                    self.wishes.settle()
                    if event := self._earlier_run.restart(self._clock_s()):
                        self.mark(event)
                    self._follow_alerts()
                    self._mark_lost_engines()
            except Exception:
                _log.exception("the monitor failed; going on")

    def _flush(self) -> None:
        """Store what was counted, and until when."""
        now_s = self._clock_s()
        if self.history.flush():
            self._earlier_run.settle(now_s)

    def _look(self) -> None:
        """Ask the trainer for its status, and every actor for its events."""
        if "distiller" in self._watched:
            self._trainer = self._asked("distiller", "status")
            if self._trainer is not None:
                self._take_trainer(self._trainer)
        for name in self._watched:
            for event in self._asked(name, "events", 200) or []:
                self.mark(event)

    def _asked(self, name: str, method: str, *args: Any) -> Any:
        try:
            return self._ask(self._watched[name], method, *args, timeout_s=_ASK_TIMEOUT_S)
        except Exception:  # noqa: BLE001 - while an actor restarts, Ray raises many types
            return None

    @property
    def drifting(self) -> tuple[str, ...]:
        """Domains whose acceptance drifts, as far as the trainer last said."""
        return tuple(_drifting(self._trainer))

    def _take_trainer(self, trainer: TrainerStatus) -> None:
        if trainer.steps != self._steps[0] or trainer.state != "training":
            self._steps = (trainer.steps, self._clock_s())
        levels = {
            "loss": trainer.loss,
            "learning_rate": trainer.learning_rate,
            "replay_bytes": float(trainer.replay_bytes),
            "stream_lag": trainer.stream_lag,
            "worth": trainer.worth,
        }
        known = {name: float(value) for name, value in levels.items() if value is not None}
        self.history.add(Series(engine="trainer"), {**_as_samples(known), "trained_ms": 1e3 * self._trained(trainer)})

    def _trained(self, trainer: TrainerStatus) -> float:
        """Seconds that the trainer trained since the last look. Those of a restarted one count from zero."""
        before, self._trained_s = self._trained_s, trainer.training_s
        if before is None:  # it may have trained long before this process began to look
            return 0.0
        return trainer.training_s - before if trainer.training_s >= before else trainer.training_s

    def _follow_alerts(self) -> None:
        now_s = self._clock_s()
        if not self._knows_past:
            self._learn_past(now_s)
        self._keep_out_of_the_future(now_s)
        recent = self.history.buckets(TIERS[1], now_s - self._longest_s, now_s)
        with self._lock:
            facts = Facts(
                at_s=now_s,
                trainer=self._trainer if "distiller" in self._watched else TrainerStatus(state="off"),
                engines_away=self._silent_engines(),
                steps_changed_s=self._steps[1],
                gate_decided_s=self._gate_decided_s,
                buckets=tuple(recent.buckets),
                events=tuple(recent.events),
                drifting=_drifting(self._trainer),
            )
            told = self._alerts.update(facts)
        for event in told:
            self.mark(event)
            self._sender.send(event)

    def _keep_out_of_the_future(self, now_s: float) -> None:
        """After the clock was put back: what is said to have happened later than now has just happened."""
        with self._lock:
            self._steps = (self._steps[0], min(self._steps[1], now_s))
            self._gate_decided_s = min(self._gate_decided_s, now_s)

    def _silent_engines(self) -> tuple[str, ...]:
        """Engines whose reports stopped. Where engines are scaled, they come and go, and Ray Serve watches them."""
        if "engine" not in self._watched:
            return ()
        draining, now_s = self.wishes.now.draining, self._monotonic_s()
        return tuple(
            name for name, heard_s in self._heard_s.items() if now_s - heard_s > _SILENT_S and name not in draining
        )

    def _mark_lost_engines(self) -> None:
        """Where Ray Serve starts and ends engines, another takes a dead one's place, under another name."""
        if "engine" in self._watched:
            return
        now_s = self._monotonic_s()
        with self._lock:
            lost = {name: now_s - heard_s for name, heard_s in self._heard_s.items() if now_s - heard_s > _LOST_S}
        for name, silent_s in lost.items():
            self.farewell(name)
            self.num_lost_engines += 1
            message = f"engine {name} was lost: it reports no more; Ray Serve starts another if it is needed"
            data = {"actor": "engine", "engine": name}
            self.mark(Event(at_s=self._clock_s() - silent_s, kind="restart", message=message, data=data))
        with self._lock:
            gone = self.wishes.now.draining - self._heard_s.keys()
        if gone and now_s - self._listens_since_s > _LOST_S:
            self.wishes.change(lambda wishes: wishes.without_engines(gone))

    def _learn_past(self, now_s: float) -> None:
        """After a restart: what fired, was acknowledged and silenced, and when the gate decided last."""
        found = self.history.buckets(TIERS[2], now_s - _REMEMBER_S, now_s, max_events=_MOST_REMEMBERED)
        if found.message:  # only what this process did itself
            return
        decided = (one.at_s for one in found.events if one.kind in ("publish", "refuse"))
        with self._lock:
            self._alerts.remember(found.events, now_s)
            self._gate_decided_s = max(decided, default=self._gate_decided_s)
            self._knows_past = True


def _drifting(trainer: TrainerStatus | None) -> dict[str, str]:
    """Domains that drift, each with what its detector says."""
    found = trainer.drift if trainer is not None else {}
    return {
        domain: f"first-token acceptance was {one.before:.3f} and is {one.recent:.3f} over {one.queries} queries"
        for domain, one in found.items()
        if one.state == "drift"
    }


def open_monitor(config: MonitorConfig, redis_url: str, watched: Mapping[str, str], *, ask: Ask) -> Monitor:
    """A monitor with its history in Redis, or in memory if there is no URL."""
    store = RedisHistory(redis_url, config.history, max_bytes=config.history_bytes) if redis_url else None
    return Monitor(config, store, watched, ask=ask)


def _as_samples(levels: Mapping[str, float]) -> Figures:
    """One sample of each level, as figures that add up."""
    return {**levels, **dict.fromkeys((name + SAMPLES for name in levels), 1.0)}
