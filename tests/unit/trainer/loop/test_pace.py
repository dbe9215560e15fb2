"""When the gate decides, and how training goes on by what it says."""

from __future__ import annotations

from trainer.gate.gate import GateDecision
from trainer.loop.pace import Pace


def _decision(length: float, *, published: bool = False, worse: bool = False) -> GateDecision:
    """Of a candidate with this acceptance length, where the serving version has 2."""
    return GateDecision(published, worse, {"length": length, "serving_length": 2.0, "margin": 0.0})


def test_the_gate_decides_less_often_where_it_takes_longer() -> None:
    pace = Pace(10)
    assert [pace.is_gate_due(steps, 8, is_last=False) for steps in (9, 10)] == [False, True]
    assert [pace.is_gate_due(steps, 64, is_last=False) for steps in (20, 21)] == [False, True]
    pace.steps_at_gate = 21
    assert [pace.is_gate_due(steps, 64, is_last=False) for steps in (41, 42)] == [False, True]


def test_it_decides_sooner_when_training_ends_for_now_but_not_after_a_step_or_two() -> None:
    pace = Pace(10)
    assert [pace.is_gate_due(steps, 64, is_last=True) for steps in (9, 10)] == [False, True]


def test_rate_and_worth_follow_the_decisions() -> None:
    pace = Pace(10)
    worse, refused, published = _decision(1.9, worse=True), _decision(1.99), _decision(2.1, published=True)
    for decision in (worse, refused):
        pace.after(decision)
    assert (pace.rate, pace.worth) == (0.5, 0.25)
    pace.after(published)
    assert (pace.rate, pace.worth) == (1.0, 1.0)
    for _ in range(9):
        pace.after(worse)
    assert (pace.rate, pace.worth) == (1 / 16, 1 / 16)
    again = Pace(10)
    again.restore(pace.state())
    assert again.state() == pace.state()
    again.start_anew()
    assert (again.rate, again.worth) == (1.0, 1.0)


def test_a_candidate_that_is_not_certainly_better_yet_is_worth_going_on_with() -> None:
    pace = Pace(10)
    pace.after(_decision(2.05))
    assert (pace.rate, pace.worth) == (1.0, 1.0)
