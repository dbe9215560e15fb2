"""Alert rules: they fire after their time, for each subject, end by themselves, and are kept quiet when told to be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from osd.config.monitor import AlertRule
from osd.monitor.alerts import Alerts, UnknownAlertError
from osd.monitor.buckets import Bucket, Series
from osd.monitor.conditions import reasons
from osd.monitor.facts import Facts
from osd.records.events import Event, EventKind
from osd.records.status import TrainerStatus

NOW_S = 1_800_000_000.0


def rule(when: Any, **settings: Any) -> AlertRule:
    return AlertRule(name="a_rule", when=when, **settings)


def facts(**known: Any) -> Facts:
    known = {"trainer": TrainerStatus(state="training"), "steps_changed_s": NOW_S, "gate_decided_s": NOW_S, **known}
    return Facts(at_s=NOW_S, **known)


def event(kind: EventKind, ago_s: float, **data: Any) -> Event:
    return Event(at_s=NOW_S - ago_s, kind=kind, message=f"{kind} {ago_s}", data=data)


def served(ago_s: float, domain: str, proposed: float, accepted: float) -> Bucket:
    return Bucket(NOW_S - ago_s, {Series(domain, "feature", 1, "a"): {"proposed": proposed, "accepted": accepted}})


def test_acceptance_below_a_bound_is_judged_by_domain_and_on_enough_tokens() -> None:
    buckets = (
        served(30, "code", 500, 50), served(60, "chat", 500, 300), served(60, "rare", 20, 0),
        served(9000, "old", 500, 0),
    )  # fmt: skip
    found = reasons(rule("acceptance_below", bound=0.2), facts(buckets=buckets))
    assert found == {"code": "acceptance rate 0.100 of 500 proposed tokens is below 0.2"}
    assert reasons(rule("acceptance_below", bound=0.2, domain="chat"), facts(buckets=buckets)) == {}


@pytest.mark.parametrize(
    ("when", "settings", "holds", "does_not"),
    [
        ("roll_back", {}, {"events": (event("roll_back", 10),)}, {"events": (event("roll_back", 1000),)}),
        (
            "roll_back",
            {},
            {"events": (event("roll_back", 10, manual=0),)},
            {"events": (event("roll_back", 10, manual=1),)},
        ),
        (
            "engine_restarts",
            {"bound": 1},
            {"events": (event("restart", 10, actor="engine"), event("restart", 20, actor="engine"))},
            {"events": (event("restart", 10, actor="engine"), event("restart", 20, actor="distiller"))},
        ),
        (
            "outcomes_dropped",
            {},
            {"buckets": (Bucket(NOW_S - 60, {Series(engine="a"): {"dropped": 1.0}}),)},
            {"buckets": (Bucket(NOW_S - 6000, {Series(engine="a"): {"dropped": 1.0}}),)},
        ),
        ("gate_starved", {}, {"gate_decided_s": NOW_S - 700}, {"gate_decided_s": NOW_S - 500}),
        ("trainer_stuck", {}, {"steps_changed_s": NOW_S - 700}, {"steps_changed_s": NOW_S - 500}),
        ("trainer_stuck", {}, {"trainer": None}, {"trainer": TrainerStatus(state="paused"), "steps_changed_s": 0.0}),
        ("gate_starved", {}, {"gate_decided_s": 0.0}, {"gate_decided_s": 0.0, "trainer": TrainerStatus(state="off")}),
        ("engine_away", {}, {"engines_away": ("b",)}, {}),
        ("drift", {}, {"drifting": {"code": "fell"}}, {}),
    ],
)
def test_conditions(when: Any, settings: dict[str, Any], holds: dict[str, Any], does_not: dict[str, Any]) -> None:
    assert reasons(rule(when, **settings), facts(**holds))
    assert not reasons(rule(when, **settings), facts(**does_not))


def states(told: list[Event]) -> list[tuple[str, str]]:
    return [(str(one.data["subject"]), str(one.data["state"])) for one in told]


def test_an_alert_fires_after_its_time_once_and_tells_when_it_ends() -> None:
    alerts = Alerts([rule("drift", for_s=60)])
    drifting = facts(drifting={"code": "fell", "chat": "fell"})
    assert alerts.update(drifting) == []
    assert [one.state for one in alerts.current(NOW_S)] == ["pending", "pending"]
    assert alerts.update(replace(drifting, at_s=NOW_S + 59)) == []
    assert states(alerts.update(replace(drifting, at_s=NOW_S + 60))) == [("code", "firing"), ("chat", "firing")]
    assert alerts.update(replace(drifting, at_s=NOW_S + 90)) == []
    assert states(alerts.update(replace(drifting, at_s=NOW_S + 95, drifting={"chat": "fell"}))) == [
        ("code", "resolved")
    ]
    # What held only for a moment begins anew.
    alerts = Alerts([rule("drift", for_s=60)])
    for at_s in range(0, 300, 50):
        drifts = {"code": "fell"} if at_s % 100 == 0 else {}
        assert alerts.update(replace(drifting, at_s=NOW_S + at_s, drifting=drifts)) == []


def test_a_clock_that_is_put_back_delays_no_alert_by_more_than_its_time() -> None:
    alerts = Alerts([rule("drift", for_s=60)])
    drifting = facts(drifting={"code": "fell"})
    alerts.update(drifting)
    alerts.silence("a_rule", 3600, "anna", NOW_S)
    back_s = NOW_S - 400 * 86_400
    assert alerts.update(replace(drifting, at_s=back_s)) == []
    assert alerts.silences(back_s) == {}, "nobody silenced it for a year"
    assert states(alerts.update(replace(drifting, at_s=back_s + 60))) == [("code", "firing")]


def test_a_silenced_rule_tells_nobody_but_is_shown() -> None:
    alerts = Alerts([rule("drift")])
    alerts.silence("a_rule", 100.0, "anna", NOW_S)
    drifting = facts(drifting={"code": "fell"})
    assert alerts.update(drifting) == []
    (alert,) = alerts.current(NOW_S)
    assert (alert.state, alert.silenced_until_s) == ("firing", NOW_S + 100)
    assert states(alerts.update(replace(drifting, at_s=NOW_S + 101, drifting={}))) == [("code", "resolved")]


def test_acknowledgements_and_silences_survive_a_restart() -> None:
    alerts = Alerts([rule("drift")])
    alerts.update(facts(drifting={"code": "fell"}))
    kept = [alerts.acknowledge("a_rule", "code", "anna", NOW_S), alerts.silence("a_rule", 500.0, "bob", NOW_S)]
    later = Alerts([rule("drift")])
    later.remember(kept, NOW_S)
    later.update(facts(drifting={"code": "fell"}))
    (alert,) = later.current(NOW_S)
    assert (alert.acknowledged_by, alert.silenced_until_s) == ("anna", NOW_S + 500)


def test_an_alert_that_fired_before_a_restart_is_not_told_again_and_its_end_is() -> None:
    alerts = Alerts([rule("drift")])
    drifting = facts(drifting={"code": "fell", "chat": "fell"})
    fired = alerts.update(drifting)
    later = Alerts([rule("drift")])
    later.remember(fired, NOW_S + 100)
    assert later.update(replace(drifting, at_s=NOW_S + 105, drifting={})) == [], "the trainer has not answered yet"
    assert [one.subject for one in later.current(NOW_S + 105)] == ["code", "chat"]
    assert later.update(replace(drifting, at_s=NOW_S + 110, drifting={"code": "fell"})) == []
    assert {one.since_s for one in later.current(NOW_S + 110)} == {NOW_S}
    assert states(later.update(replace(drifting, at_s=NOW_S + 115, drifting={}))) == [("code", "resolved")]
    assert states(later.update(replace(drifting, at_s=NOW_S + 170, drifting={}))) == [("chat", "resolved")]


def test_what_was_acknowledged_and_ended_is_not_acknowledged_when_it_comes_again_after_a_restart() -> None:
    alerts = Alerts([rule("drift")])
    drifting = facts(drifting={"code": "fell"})
    kept = [*alerts.update(drifting), alerts.acknowledge("a_rule", "code", "anna", NOW_S)]
    kept += alerts.update(facts(drifting={}))
    later = Alerts([rule("drift")])
    later.remember(kept, NOW_S)
    assert states(later.update(drifting)) == [("code", "firing")]
    assert later.current(NOW_S)[0].acknowledged_by == ""


def test_unknown_alerts_are_named() -> None:
    alerts = Alerts([rule("drift")])
    with pytest.raises(UnknownAlertError, match="may have ended"):
        alerts.acknowledge("a_rule", "code", "anna", NOW_S)
    with pytest.raises(UnknownAlertError, match="the rules are a_rule"):
        alerts.silence("other", 1.0, "anna", NOW_S)
