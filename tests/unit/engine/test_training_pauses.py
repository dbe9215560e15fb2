"""TrainingPauses for training: the share of the time that pauses take, and an engine that makes them."""

from __future__ import annotations

import threading

import pytest

from osd.engine import training_pauses
from osd.engine.loop import EngineLoop
from osd.engine.training_pauses import TrainingPauses
from osd.records.query import Request, SamplingParams, TokenDelta
from tests.kit.clock import Clock
from tests.kit.engine_kit import make_engine, make_target, plain_greedy, tiny_llama


@pytest.mark.parametrize("step_s", [0.001, 0.006, 0.3])
@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
def test_pauses_take_the_share_that_was_granted(step_s: float, share: float) -> None:
    clock = Clock()
    room = TrainingPauses(clock)
    room.grant(share, 1e9)
    paused_s = 0.0
    for _ in range(60_000):
        clock.now_s += step_s
        pause_s = room.pause_s(step_s)
        assert pause_s == 0.0 or 0.03 <= pause_s <= 0.05
        room.paused(pause_s)
        clock.now_s += pause_s
        paused_s += pause_s
    if step_s < 0.3 or share < 0.5:  # else pauses would have to be longer than a client should notice
        assert paused_s / clock.now_s == pytest.approx(share, rel=0.1) or share / (1 - share) * step_s > 0.05


def test_a_grant_ends_by_itself() -> None:
    clock = Clock()
    room = TrainingPauses(clock)
    assert room.pause_s(1.0) == 0.0
    room.grant(0.1, for_s=3.0)
    assert room.pause_s(1.0) == 0.05
    clock.now_s = 3.0
    assert room.pause_s(1.0) == 0.0
    room.grant(0.1, for_s=3.0)
    assert room.pause_s(0.001) == 0.0, "nothing is owed for the time without a grant"


def test_a_pause_that_was_cut_short_is_made_up_for() -> None:
    room = TrainingPauses(Clock())
    room.grant(0.5, 1.0)
    assert room.pause_s(0.04) == pytest.approx(0.04)
    room.paused(0.005)
    assert room.pause_s(0.0) == pytest.approx(0.035)


def test_an_engine_pauses_and_answers_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny model decodes the whole answer in less time than pauses are saved up for."""
    monkeypatch.setattr(training_pauses, "_SHORTEST_PAUSE_S", 0.001)
    model = tiny_llama()
    done = threading.Event()
    ids: list[int] = []

    def deliver(deltas: list[TokenDelta]) -> None:
        for delta in deltas:
            ids.extend(delta.token_ids)
            if delta.finish_reason:
                done.set()

    engine = make_engine(make_target(model))
    loop = EngineLoop(engine, deliver)
    loop.leave_room(0.5, for_s=600.0)
    loop.start()
    params = SamplingParams(temperature=0.0, max_tokens=50, ignore_eos=True)
    loop.submit(Request(request_id="r", prompt_ids=(1, 2, 3), params=params))
    assert done.wait(120)
    status = loop.status()
    loop.stop()
    assert ids == plain_greedy(model, (1, 2, 3), 50)
    assert status.counters["paused_seconds_total"] > 0.0
