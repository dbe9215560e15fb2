"""The conditions of alert rules: each says, for every subject of which it holds, why."""

from __future__ import annotations

from collections.abc import Callable

from osd.config.monitor import AlertRule, Condition
from osd.monitor.facts import MIN_PROPOSED, Facts

Reasons = dict[str, str]
"""Subject (a domain, an engine; empty: the service) to why the condition holds."""


def reasons(rule: AlertRule, facts: Facts) -> Reasons:
    """Every subject of which the rule's condition holds now."""
    found = _CONDITIONS[rule.when](rule, facts)
    return {subject: why for subject, why in found.items() if not rule.domain or subject == rule.domain}


def _drift(rule: AlertRule, facts: Facts) -> Reasons:
    return dict(facts.drifting)


def _roll_back(rule: AlertRule, facts: Facts) -> Reasons:
    """Nobody is told of what an operator did."""
    events = [one for one in facts.events_of("roll_back", rule.window_s) if not one.data.get("manual")]
    return {"": events[-1].message} if len(events) > rule.bound else {}


def _gate_starved(rule: AlertRule, facts: Facts) -> Reasons:
    """The trainer is on, but has decided nothing for as long as the rule's window."""
    trainer = facts.trainer
    if trainer is None or trainer.state not in ("training", "yielding", "waiting_for_data"):
        return {}
    silent_s = facts.at_s - facts.gate_decided_s
    if silent_s < rule.window_s:
        return {}
    return {"": f"the gate has decided nothing for {silent_s:.0f} s; the trainer is {trainer.state}"}


def _acceptance_below(rule: AlertRule, facts: Facts) -> Reasons:
    found = {}
    for domain, sums in facts.sums(rule.window_s).items():
        proposed = sums.get("proposed", 0.0)
        if domain and proposed >= MIN_PROPOSED and (rate := sums.get("accepted", 0.0) / proposed) < rule.bound:
            found[domain] = f"acceptance rate {rate:.3f} of {proposed:.0f} proposed tokens is below {rule.bound:g}"
    return found


def _outcomes_dropped(rule: AlertRule, facts: Facts) -> Reasons:
    dropped = sum(sums.get("dropped", 0.0) for sums in facts.sums(rule.window_s).values())
    return {"": f"{dropped:.0f} outcomes were lost in {rule.window_s:.0f} s"} if dropped > rule.bound else {}


def _engine_restarts(rule: AlertRule, facts: Facts) -> Reasons:
    events = [one for one in facts.events_of("restart", rule.window_s) if one.data.get("actor") == "engine"]
    return {"": f"{len(events)} restarts in {rule.window_s:.0f} s"} if len(events) > rule.bound else {}


def _engine_away(rule: AlertRule, facts: Facts) -> Reasons:
    return {name: f"engine {name} does not answer" for name in facts.engines_away}


def _trainer_stuck(rule: AlertRule, facts: Facts) -> Reasons:
    """The trainer says that it trains, but makes no step; or it does not answer."""
    if facts.trainer is None:
        return {"": "the trainer does not answer"}
    still_s = facts.at_s - facts.steps_changed_s
    if facts.trainer.state == "training" and still_s >= rule.window_s:
        return {"": f"the trainer has made no step for {still_s:.0f} s"}
    if facts.trainer.state == "stopped":
        return {"": f"the trainer has stopped: {facts.trainer.message}"}
    return {}


_CONDITIONS: dict[Condition, Callable[[AlertRule, Facts], Reasons]] = {
    "drift": _drift,
    "roll_back": _roll_back,
    "gate_starved": _gate_starved,
    "acceptance_below": _acceptance_below,
    "outcomes_dropped": _outcomes_dropped,
    "engine_restarts": _engine_restarts,
    "engine_away": _engine_away,
    "trainer_stuck": _trainer_stuck,
}
