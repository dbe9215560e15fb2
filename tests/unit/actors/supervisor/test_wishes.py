"""What the operator asks for reaches engines with the answers to their reports, and survives every restart."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

import actors.supervisor.supervisor
from actors.engine.engine import as_ordered
from actors.supervisor.kept_wishes import KeptWishes
from actors.supervisor.monitor import Monitor
from actors.supervisor.supervisor import SupervisorActor
from osd.config.monitor import MonitorConfig
from osd.fleet.heartbeat import EngineOrders
from osd.monitor.wishes import BadWishError, Wishes
from osd.records.errors import QueueFullError
from osd.records.query import Request
from osd.records.status import DomainDrift, DriftState, TrainerStatus
from tests.kit.fake_status import fake_report
from tests.kit.history_stores import MemoryHistory
from tests.kit.waiting import wait_for

QUERY = Request(request_id="r", prompt_ids=(1,), domain="code")


def test_a_policy_is_for_queries_that_ask_for_nothing_themselves() -> None:
    orders = EngineOrders(session="s", lengths={"code": 0})
    assert as_ordered(QUERY, orders).speculation_length == 0
    assert as_ordered(replace(QUERY, domain="chat"), orders).speculation_length is None
    assert as_ordered(replace(QUERY, speculation_length=3), orders).speculation_length == 3


def test_a_draining_engine_takes_no_new_queries_but_goes_on_with_old_ones() -> None:
    orders = EngineOrders(session="s", draining=True)
    with pytest.raises(QueueFullError, match="drained"):
        as_ordered(QUERY, orders)
    assert as_ordered(replace(QUERY, resume_ids=(7,)), orders).resume_ids == (7,)


def test_the_supervisor_orders_what_was_asked_for() -> None:
    supervisor = SupervisorActor({})
    supervisor.set_length("code", 2)
    with pytest.raises(BadWishError, match="'b' does not report; the engines are all away"):
        supervisor.set_draining("b", True)
    assert supervisor.report(fake_report("a")).lengths == {"code": 2}
    with pytest.raises(BadWishError, match="the engines are a$"):
        supervisor.set_draining("b", True)
    supervisor.report(fake_report("b"))
    supervisor.set_draining("b", True)
    assert [supervisor.report(fake_report(name)).draining for name in ("a", "b")] == [False, True]
    supervisor.set_draining("b", False)
    supervisor.set_length("code", None)
    orders = supervisor.report(fake_report("b"))
    assert (orders.lengths, orders.draining) == ({}, False)
    supervisor.close()


def test_the_supervisor_tells_engines_which_domains_drift() -> None:
    """As the trainer says, until a better version was published."""
    states: list[DriftState] = ["drift", "warning"]
    windows = [DomainDrift(state=state, queries=9, before=0.5, recent=0.3) for state in states]
    statuses = [TrainerStatus(state="training", drift={"sql": window}) for window in windows]

    def ask(actor: str, method: str, *args: Any, timeout_s: float) -> Any:
        return {"status": statuses[0], "events": []}.get(method, 1)

    supervisor = SupervisorActor({"distiller": "osd-distiller"}, ask=ask)
    wait_for(lambda: supervisor.report(fake_report("a")).drifting == ("sql",))
    del statuses[0]
    wait_for(lambda: supervisor.report(fake_report("a")).drifting == ())
    supervisor.close()


def test_wishes_survive_restarts_also_those_of_an_outage() -> None:
    store = MemoryHistory()
    KeptWishes(store).change(lambda wishes: wishes.with_frozen("code", True))
    store.is_away = True
    later = KeptWishes(store)
    later.settle()
    store.is_away = False
    assert later.now == Wishes()
    later.settle()
    assert later.now.frozen == {"code"}
    store.is_away = True
    later.change(lambda wishes: wishes.with_frozen("chat", True))
    store.is_away = False
    later.settle()
    restarted = KeptWishes(store)
    restarted.settle()
    assert restarted.now.frozen == {"code", "chat"}


def test_a_wish_from_before_the_stored_ones_were_read_joins_them() -> None:
    """Redis and the supervisor were restarted together, and an operator did not wait."""
    store = MemoryHistory()
    KeptWishes(store).change(lambda wishes: wishes.with_frozen("code", True).with_length("code", 2))
    store.is_away = True
    later = KeptWishes(store)
    later.change(lambda wishes: wishes.with_frozen("chat", True))
    assert later.now == Wishes(frozen=frozenset({"chat"})), "it holds at once"
    store.is_away = False
    later.settle()
    both = Wishes(frozen=frozenset({"code", "chat"}), lengths={"code": 2})
    assert later.now == both
    again = KeptWishes(store)
    again.settle()
    assert again.now == both


def test_wishes_are_written_again_where_somebody_emptied_the_store() -> None:
    store = MemoryHistory()
    wishes = KeptWishes(store)
    wishes.settle()
    assert store.values == {}, "nothing was wished"
    wishes.change(lambda wishes: wishes.with_frozen("code", True))
    store.empty()
    wishes.settle()
    restarted = KeptWishes(store)
    restarted.settle()
    assert restarted.now.frozen == {"code"}


def test_of_two_operators_at_once_neither_undoes_the_other() -> None:
    store = MemoryHistory()
    wishes = KeptWishes(store)

    def freeze(number: int) -> None:
        wishes.change(lambda wishes: wishes.with_frozen(f"domain-{number}", True))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(freeze, range(100)))
    restarted = KeptWishes(store)
    restarted.settle()
    assert len(wishes.now.frozen) == len(restarted.now.frozen) == 100


def test_a_pause_outlives_a_restart_of_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryHistory()
    monkeypatch.setattr(actors.supervisor.supervisor, "open_monitor", lambda *args, **named: _monitor(store))
    for paused in (True, False):
        supervisor = SupervisorActor({})
        supervisor.set_training_paused(paused)
        supervisor.close()
        supervisor = SupervisorActor({})
        assert supervisor.training_is_paused(now=False) is paused, "the restarted distiller is not paused by itself"
        supervisor.close()


def _monitor(store: MemoryHistory) -> Monitor:
    return Monitor(MonitorConfig(), store, {}, ask=lambda *args, **named: None)


def test_absurd_wishes_are_refused() -> None:
    with pytest.raises(BadWishError, match="length"):
        Wishes().with_length("code", 17)
    with pytest.raises(BadWishError, match="domain"):
        Wishes().with_frozen("", True)
    wishes = Wishes()
    with pytest.raises(BadWishError, match="200"):
        for number in range(300):
            wishes = wishes.with_frozen(f"domain-{number}", True)
