"""The supervisor's monitor: what engines and the trainer report is in the history; alerts fire from it."""

from __future__ import annotations

import threading
from functools import partial
from itertools import count
from typing import Any

from actors.supervisor.monitor import Monitor
from osd.config.monitor import AlertRule, MonitorConfig, Webhook
from osd.monitor.buckets import HistoryAnswer, HistoryQuery, Series
from osd.monitor.wishes import Wishes
from osd.records.events import Event
from osd.records.status import TrainerStatus
from tests.kit.history_stores import MemoryHistory, SetClock
from tests.kit.reports import engine_report
from tests.kit.waiting import wait_for

NOON_S = 1_800_000_000.0


class Others:
    """The engine and the distiller."""

    def __init__(self) -> None:
        self.trainer: TrainerStatus | None = TrainerStatus(state="training", loss=2.0)
        self.log = [Event(at_s=NOON_S, kind="publish", message="version 2")]
        self.asked = threading.Event()

    def ask(self, actor: str, method: str, *args: Any, timeout_s: float) -> Any:
        self.asked.set()
        if method == "events":
            return self.log if actor == "osd-distiller" else []
        if self.trainer is None:
            raise RuntimeError("the actor died")
        return self.trainer


WATCHED = {"engine": "osd-engine", "distiller": "osd-distiller"}


def sums(answer: HistoryAnswer) -> dict[str, dict[str, float]]:
    return {
        str(series.of["engine"]): {name: sum(filter(None, values)) for name, values in series.figures.items()}
        for series in answer.series
    }


def test_reports_are_merged_over_engines_and_kept() -> None:
    clock, store, others = SetClock(NOON_S), MemoryHistory(), Others()
    monitor = Monitor(MonitorConfig(), store, WATCHED, ask=others.ask, clock_s=clock, look_s=0.001)
    rows = ((Series("code", "feature", 2), {"rounds": 4.0}),)
    for engine in ("a", "b"):
        monitor.take(engine_report(engine, served=rows, utilisation=0.5, running=3))
    monitor.take(engine_report("a", number=1, served=rows, utilisation=0.7, running=1))
    query = HistoryQuery(from_s=NOON_S - 60, to_s=NOON_S + 60, by=("engine",))
    wait_for(lambda: "trainer" in sums(monitor.read(query)))
    by_engine = sums(monitor.read(query))
    assert {name: by_engine["a"][name] for name in ("rounds", "utilisation", "utilisation.samples", "running")} == {
        "rounds": 4.0,
        "utilisation": 1.2,
        "utilisation.samples": 2.0,
        "running": 4.0,
    }
    assert by_engine["b"]["rounds"] == 4.0
    assert by_engine["trainer"]["loss"] == 2.0 * by_engine["trainer"]["loss.samples"]
    wait_for(lambda: monitor.history.events(0.0, 2 * NOON_S, 10))
    monitor.close()
    again = Monitor(MonitorConfig(), store, {}, ask=others.ask, clock_s=clock, look_s=60.0)
    assert sums(again.read(query))["a"] == by_engine["a"]
    assert [one.message for one in again.history.events(0.0, 2 * NOON_S, 10)] == [
        "version 2"
    ]  # once, though asked often
    again.close()


def _restarts(store: MemoryHistory, clock: SetClock, uptime_s: float | None) -> list[str]:
    """What a new monitor says of restarts; `uptime_s` is of the engine that reports to it, None: none does."""
    monitor = Monitor(MonitorConfig(), store, {}, ask=Others().ask, clock_s=clock, look_s=0.001)
    if uptime_s is None:
        clock.now_s += 31
    else:
        monitor.take(engine_report(uptime_s=uptime_s))
    wait_for(lambda: monitor._earlier_run._is_told, "it to be known")
    monitor.close()
    events = monitor.history.events(0.0, 2 * NOON_S, 100)
    return [f"{event.data['actor']}: {event.message}" for event in events if event.kind == "restart"]


def test_a_restart_is_marked_once_and_says_of_what_and_since_when() -> None:
    clock, store = SetClock(NOON_S), MemoryHistory()
    assert _restarts(store, clock, uptime_s=0.0) == [], "the first start is none"
    clock.now_s += 20 * 60
    whole = "service: the service was restarted; nothing was counted for 20 min before"
    assert _restarts(store, clock, uptime_s=4.0) == [whole]
    clock.now_s += 40
    alone = "supervisor: the supervisor was restarted; what engines counted for 40 s before is missing here"
    assert _restarts(store, clock, uptime_s=600.0) == [whole, alone]
    clock.now_s += 3 * 86_400
    later = "service: the service was restarted; nothing was counted for 3 days before"
    assert _restarts(store, clock, uptime_s=None) == [whole, alone, later], "an engine may take long to load"


def test_a_service_that_ran_for_a_moment_leaves_a_mark() -> None:
    clock, store = SetClock(NOON_S), MemoryHistory()
    _restarts(store, clock, uptime_s=0.0)
    clock.now_s += 3
    assert _restarts(store, clock, uptime_s=0.0) == [
        "service: the service was restarted; nothing was counted for 3 s before"
    ]


def test_a_restart_after_which_the_clock_was_put_back_is_marked_without_a_gap() -> None:
    clock, store = SetClock(NOON_S), MemoryHistory()
    _restarts(store, clock, uptime_s=0.0)
    clock.now_s -= 3600
    assert _restarts(store, clock, uptime_s=0.0) == [
        "service: the service was restarted; nothing was counted for 0 s before"
    ]


def test_what_was_counted_is_stored_after_the_first_look() -> None:
    """So that a process that is killed within seconds leaves something."""
    store, others, again = MemoryHistory(), Others(), threading.Event()
    looks = count()

    def ask(actor: str, method: str, *args: Any, timeout_s: float) -> Any:
        if method == "status" and next(looks):
            again.wait()
        return others.ask(actor, method, *args, timeout_s=timeout_s)

    monitor = Monitor(MonitorConfig(), store, WATCHED, ask=ask, clock_s=SetClock(NOON_S), look_s=0.001)
    wait_for(lambda: store.buckets and "counted_until" in store.values, "what was counted, and until when")
    again.set()
    monitor.close()


def test_a_restart_is_marked_also_where_the_history_was_away_meanwhile() -> None:
    clock, store = SetClock(NOON_S), MemoryHistory()
    _restarts(store, clock, uptime_s=0.0)
    clock.now_s += 600
    store.is_away = True
    monitor = Monitor(MonitorConfig(), store, {}, ask=Others().ask, clock_s=clock, look_s=0.001)
    monitor.take(engine_report(uptime_s=1.0))
    wait_for(lambda: monitor.history._away_since_s is not None, "the outage to be noticed")
    store.is_away = False
    wait_for(lambda: [one for one in monitor.history.events(0.0, 2 * NOON_S, 100) if one.kind == "restart"])
    monitor.close()


def test_where_engines_come_and_go_one_that_dies_is_marked_and_one_that_takes_leave_is_not() -> None:
    clock = SetClock(NOON_S)
    config = MonitorConfig(alerts=(AlertRule(name="restarts", when="engine_restarts"),))
    watched = {"distiller": "osd-distiller"}
    monitor = Monitor(
        config, MemoryHistory(), watched, ask=Others().ask, clock_s=clock, monotonic_s=clock, look_s=0.001
    )
    for engine in ("dies", "leaves", "stays"):
        monitor.take(engine_report(engine))
        monitor.wishes.change(partial(Wishes.with_draining, engine=engine, draining=True))
    monitor.farewell("leaves")
    clock.now_s += 40
    monitor.take(engine_report("stays", number=1))
    clock.now_s += 30
    wait_for(lambda: monitor.alerts().alerts, "the alert")
    restarts = [one for one in monitor.history.events(0.0, 2 * NOON_S, 100) if one.kind == "restart"]
    assert [(one.at_s, one.data) for one in restarts] == [(NOON_S, {"actor": "engine", "engine": "dies"})]
    assert monitor.num_lost_engines == 1
    wait_for(lambda: monitor.wishes.now.draining == {"stays"}, "the wishes of engines that are gone to end")
    assert set(monitor._heard_s) == {"stays"}, "nothing is kept of engines that are gone"
    monitor.close()


def test_events_are_counted_by_kind_once_and_not_those_from_before_this_process() -> None:
    others = Others()
    others.log += [Event(at_s=NOON_S + at_s, kind="refuse", message="no gain") for at_s in (-1.0, 1.0, 2.0)]
    monitor = Monitor(MonitorConfig(), None, WATCHED, ask=others.ask, clock_s=SetClock(NOON_S + 1), look_s=0.001)
    wait_for(lambda: monitor.num_events.get("refuse") == 2)
    num_looks = _num_looks(monitor)
    wait_for(lambda: _num_looks(monitor) > num_looks + 2, "the same events to be told again")
    monitor.mark(others.log[-1])
    assert monitor.num_events == {"refuse": 2}
    monitor.close()


def _num_looks(monitor: Monitor) -> float:
    query = HistoryQuery(from_s=NOON_S - 60, to_s=NOON_S + 60, by=("engine",))
    return sums(monitor.read(query)).get("trainer", {}).get("loss.samples", 0.0)


def test_the_time_that_the_trainer_took_is_counted_also_over_its_restart() -> None:
    clock, others = SetClock(NOON_S), Others()
    others.trainer = TrainerStatus(state="training", training_s=100.0)
    monitor = Monitor(MonitorConfig(), None, WATCHED, ask=others.ask, clock_s=clock, look_s=0.001)
    query = HistoryQuery(from_s=NOON_S - 60, to_s=NOON_S + 60, by=("engine",))

    def train(training_s: float, *, expected_ms: float) -> None:
        others.trainer = TrainerStatus(state="training", training_s=training_s)
        wait_for(lambda: sums(monitor.read(query)).get("trainer", {}).get("trained_ms") == expected_ms)

    train(100.0, expected_ms=0.0)
    train(102.5, expected_ms=2500.0)
    train(1.0, expected_ms=3500.0)
    train(1.5, expected_ms=4000.0)
    monitor.close()


def test_a_trainer_that_died_raises_an_alert_and_posts_it() -> None:
    clock, others, posts = SetClock(NOON_S), Others(), list[bytes]()
    config = MonitorConfig(
        alerts=(AlertRule(name="stuck", when="trainer_stuck"),), webhooks=(Webhook(url="http://a.example"),)
    )

    def post(url: str, body: bytes, headers: dict[str, str]) -> int:
        posts.append(body)
        return 200

    monitor = Monitor(config, None, WATCHED, ask=others.ask, post=post, clock_s=clock, look_s=0.001)
    wait_for(others.asked.is_set)
    others.trainer = None
    wait_for(lambda: posts)
    (alert,) = monitor.alerts().alerts
    assert (alert.name, alert.state, alert.why) == ("stuck", "firing", "the trainer does not answer")
    monitor.acknowledge("stuck", "", "anna")
    assert monitor.alerts().alerts[0].acknowledged_by == "anna"
    others.trainer = TrainerStatus(state="training")
    wait_for(lambda: len(posts) == 2)
    assert monitor.alerts().alerts == []
    kinds = [one.kind for one in monitor.history.events(0.0, 2 * NOON_S, 10)]
    assert kinds.count("alert") == 2 and kinds.count("acknowledge") == 1
    monitor.close()


def test_a_silence_outlives_a_restart_whatever_happened_since() -> None:
    clock, store = SetClock(NOON_S), MemoryHistory()
    config = MonitorConfig(alerts=(AlertRule(name="stuck", when="trainer_stuck"),))
    monitor = Monitor(config, store, {}, ask=Others().ask, clock_s=clock, look_s=0.001)
    monitor.silence("stuck", 7 * 86_400, "anna")
    monitor.close()
    store.stored_events += [Event(at_s=NOON_S + at_s, kind="refuse", message="no better") for at_s in range(1, 3000)]
    clock.now_s += 86_400
    again = Monitor(config, store, {}, ask=Others().ask, clock_s=clock, look_s=0.001)
    wait_for(lambda: "stuck" in again.alerts().silences)
    again.close()


def _let_look(store: MemoryHistory) -> None:
    """Wait until the monitor has done everything once more that it does at each flush."""
    for _ in range(2):
        store.values.clear()
        wait_for(lambda: "counted_until" in store.values, "the monitor to flush")


def test_the_wish_to_drain_an_engine_that_has_a_name_of_its_own_outlives_every_restart() -> None:
    """Also where it takes its time to come back."""
    clock, store = SetClock(NOON_S), MemoryHistory()
    monitor = Monitor(MonitorConfig(), store, WATCHED, ask=Others().ask, monotonic_s=clock, look_s=0.001)
    monitor.wishes.change(lambda wishes: wishes.with_draining("engine", True))
    clock.now_s += 3600
    _let_look(store)
    assert monitor.wishes.now.draining == {"engine"}
    monitor.close()


def test_an_engine_that_falls_silent_is_away_unless_it_drains() -> None:
    clock, others = SetClock(NOON_S), Others()
    config = MonitorConfig(alerts=(AlertRule(name="away", when="engine_away"),))
    monitor = Monitor(config, None, WATCHED, ask=others.ask, monotonic_s=clock, look_s=0.001)
    for engine in ("a", "b", "c"):
        monitor.take(engine_report(engine))
    monitor.wishes.change(lambda wishes: wishes.with_draining("b", True))
    clock.now_s += 20
    monitor.take(engine_report("c", number=1))
    wait_for(lambda: monitor.alerts().alerts)
    assert [alert.subject for alert in monitor.alerts().alerts] == ["a"]
    monitor.take(engine_report("a", number=1))
    wait_for(lambda: not monitor.alerts().alerts)
    monitor.close()


def test_a_wall_clock_that_jumps_hides_no_dead_engine_and_buries_no_living_one() -> None:
    wall, monotonic, store = SetClock(NOON_S), SetClock(100.0), MemoryHistory()
    config = MonitorConfig(alerts=(AlertRule(name="away", when="engine_away"),))
    monitor = Monitor(config, store, WATCHED, ask=Others().ask, clock_s=wall, monotonic_s=monotonic, look_s=0.001)
    monitor.take(engine_report("a"))
    monitor.take(engine_report("b"))
    wall.now_s += 86_400
    _let_look(store)
    assert monitor.alerts().alerts == []
    wall.now_s -= 2 * 86_400
    monotonic.now_s += 20
    monitor.take(engine_report("b", number=1))
    wait_for(lambda: [alert.subject for alert in monitor.alerts().alerts] == ["a"])
    monitor.close()
