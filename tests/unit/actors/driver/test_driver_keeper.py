"""The keeper of the Ray driver: calls that are answered, a driver that dies, one that does not start again."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import pytest

from actors.calls.handle import ActorAwayError
from actors.calls.link import Answer, Call, Ended, Link, Order, Ready, Stage
from actors.driver.driver_keeper import DriverKeeper
from osd.config.settings import load_config
from osd.records.errors import OsdError, QueueFullError
from osd.records.status import EngineStatus
from tests.kit.waiting import wait_for

STATUS = EngineStatus(
    target="tiny",
    drafter_kind="feature",
    drafter_version=1,
    max_slots=4,
    context_tokens=64,
    running=0,
    waiting=0,
    utilisation=0.0,
    speculation_length=1,
    speculation_enabled=True,
    uptime_s=0.0,
)


class FakeProcess:
    """A driver's process without the process: what it says is said by the test, at the other end of the pipe."""

    def __init__(self, order: Order, pid: int) -> None:
        ours, theirs = socket.socketpair()
        self.order, self.pid = order, pid
        self.link, self.driver = Link(ours), Link(theirs)
        self.closed_after_s: float | None = None

    def close(self, patience_s: float) -> None:
        self.closed_after_s = patience_s
        self.link.close()
        self.driver.close()


@dataclass
class Starter:
    """Starts processes, and hands them to the test."""

    processes: list[FakeProcess] = field(default_factory=list)
    problem: OSError | None = None
    num_refused: int = 0

    def __call__(self, order: Order) -> FakeProcess:
        if self.problem:
            self.num_refused += 1
            raise self.problem
        self.processes.append(FakeProcess(order, 100 + len(self.processes)))
        return self.processes[-1]


@pytest.fixture
def starter() -> Starter:
    return Starter()


@pytest.fixture
def keeper(starter: Starter) -> Iterator[DriverKeeper]:
    start: Any = starter
    keeper = DriverKeeper(load_config(), "redis://", start_process=start, first_pause_s=0.001, longest_pause_s=0.01)
    yield keeper
    keeper.close()


def started(keeper: DriverKeeper, starter: Starter, stages: list[str] | None = None) -> FakeProcess:
    """Start it, and bring its first driver up."""
    began: Future[EngineStatus] = Future()

    def start() -> None:
        try:
            began.set_result(keeper.start(lambda stage, share: (stages if stages is not None else []).append(stage)))
        except BaseException as error:  # for whoever waits
            began.set_exception(error)

    threading.Thread(target=start).start()
    wait_for(lambda: starter.processes)
    process = starter.processes[0]
    process.driver.send(Stage("starting Ray", 0.3))
    process.driver.send(Ready(STATUS))
    assert began.result(20) == STATUS
    return process


def test_calls_are_answered_whoever_comes_first(keeper: DriverKeeper, starter: Starter) -> None:
    stages: list[str] = []
    process = started(keeper, starter, stages)
    assert stages == ["starting Ray"]
    answers = [keeper.handle("engine").call("submit", number) for number in range(3)]
    calls: list[Call] = [process.driver.receive() for _ in answers]
    assert [(call.actor, call.method, call.args) for call in calls] == [("engine", "submit", (n,)) for n in range(3)]
    process.driver.send(Answer(calls[2].number, "third", None))
    process.driver.send(Answer(calls[0].number, None, QueueFullError("no room")))
    assert answers[2].result(20) == "third"
    with pytest.raises(QueueFullError, match="no room"):
        answers[0].result(20)
    assert not answers[1].done()
    assert keeper.pid == 100


def test_a_dead_driver_is_replaced_and_what_was_open_is_told(keeper: DriverKeeper, starter: Starter) -> None:
    process = started(keeper, starter)
    keeper.training_paused = True
    waiting = keeper.handle("engine").call("poll")
    process.driver.send(Ended("its gcs_server died"))
    process.driver.end()
    with pytest.raises(ActorAwayError):
        waiting.result(20)
    wait_for(lambda: len(starter.processes) == 2)
    assert process.closed_after_s == 0, "the dead one's processes are killed at once"
    with pytest.raises(ActorAwayError):
        keeper.handle("engine").call("poll").result(20)
    successor = starter.processes[1]
    assert (process.order.training_paused, successor.order.training_paused) == (None, True)
    successor.driver.send(Ready(STATUS))
    wait_for(lambda: len(keeper.events(10)) == 2)
    assert keeper.num_restarts == 1
    died, back = keeper.events(10)
    assert died.kind == back.kind == "restart"
    assert died.message == "Ray is started again, and the actors with it: its gcs_server died"
    answer = keeper.handle("engine").call("poll")
    successor.driver.send(Answer(successor.driver.receive().number, 7, None))
    assert answer.result(20) == 7


def test_a_ray_that_does_not_start_again_is_tried_until_it_does(keeper: DriverKeeper, starter: Starter) -> None:
    process = started(keeper, starter)
    starter.problem = OSError("no space left on device")
    process.driver.end()
    wait_for(lambda: starter.num_refused > 5)
    starter.problem = None
    wait_for(lambda: len(starter.processes) == 2)
    starter.processes[1].driver.send(Ended("cannot start or join Ray: the disk is full"))
    starter.processes[1].driver.end()
    wait_for(lambda: len(starter.processes) == 3)
    starter.processes[2].driver.send(Ready(STATUS))
    wait_for(lambda: "are back" in keeper.events(1)[0].message)
    failures = [event for event in keeper.events(100) if event.kind == "error"]
    assert len(failures) > 5
    assert "no space left on device; next try in 0.001 s" in failures[0].message
    assert "no space left on device; next try in 0.01 s" in failures[5].message, "pauses grow up to a bound"
    assert "the disk is full" in failures[-1].message
    assert keeper.num_restarts == 1


def test_a_first_start_that_fails_is_said_and_not_repeated(keeper: DriverKeeper, starter: Starter) -> None:
    starter.problem = OSError("no such program")
    with pytest.raises(OsdError, match="Ray's driver does not start: no such program"):
        keeper.start(lambda stage, share: None)
    assert starter.num_refused == 1


def test_closing_lets_the_actors_bring_to_safety_what_they_have(keeper: DriverKeeper, starter: Starter) -> None:
    process = started(keeper, starter)
    waiting = keeper.handle("engine").call("poll")
    keeper.close()
    assert process.closed_after_s and process.closed_after_s > 5
    assert len(starter.processes) == 1
    with pytest.raises(ActorAwayError):
        waiting.result(20)


def test_a_driver_that_is_only_starting_is_ended_at_once(keeper: DriverKeeper, starter: Starter) -> None:
    waiter = threading.Thread(target=lambda: pytest.raises(OsdError, keeper.start, lambda stage, share: None))
    waiter.start()
    wait_for(lambda: starter.processes)
    keeper.close()
    waiter.join(20)
    assert not waiter.is_alive()
    assert starter.processes[0].closed_after_s == 0


def test_a_start_ends_with_whoever_is_told_of_it(keeper: DriverKeeper, starter: Starter) -> None:
    began: Future[EngineStatus] = Future()

    def on_progress(stage: str, share: float) -> None:
        raise SystemExit(1)  # as rich does when its output is a pipe that nobody reads any more

    def start() -> None:
        try:
            began.set_result(keeper.start(on_progress))
        except BaseException as error:  # for whoever waits
            began.set_exception(error)

    threading.Thread(target=start, daemon=True).start()
    wait_for(lambda: starter.processes)
    starter.processes[0].driver.send(Stage("starting Ray", 0.3))
    assert isinstance(began.exception(20), SystemExit)
    assert starter.processes[0].closed_after_s == 0


def test_an_answer_that_nobody_waits_for_any_more_is_dropped(keeper: DriverKeeper, starter: Starter) -> None:
    process = started(keeper, starter)
    given_up, waiting = (keeper.handle("engine").call("poll") for _ in range(2))
    calls = [process.driver.receive() for _ in range(2)]
    given_up.cancel()
    assert list(keeper._open.values()) == [waiting], "a stuck engine leaves nothing to pile up"
    for call in calls:
        process.driver.send(Answer(call.number, "late", None))
    assert waiting.result(20) == "late"
