"""The distiller's actor, without Ray: when its trainer may train, what stops it, and what it is told to do."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from actors.calls.names import ActorNames
from actors.distiller.distiller import DistillerActor
from actors.supervisor.supervisor import SupervisorActor
from osd.config.settings import load_config
from osd.records.errors import OsdError
from osd.records.status import TrainerStatus
from tests.kit.named_actors import NamedActors, ReportingEngine
from tests.kit.waiting import wait_for
from trainer.loop.demands import Demands


@dataclass
class FakeTrainer:
    """Runs until it is stopped."""

    may_train: Callable[[], bool] = lambda: True
    paused: bool = False
    demands: Demands = field(default_factory=Demands)
    worth = 0.5

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    def run_forever(self, stop: threading.Event) -> None:
        stop.wait()

    def status(self) -> TrainerStatus:
        return TrainerStatus(state="training", message="running")


@pytest.fixture
def engine() -> ReportingEngine:
    return ReportingEngine(SupervisorActor({}), pid=os.getpid())


@pytest.fixture
def others(engine: ReportingEngine) -> NamedActors:
    return NamedActors({"engine": engine, "supervisor": engine.supervisor})


@pytest.fixture
def trainers() -> list[FakeTrainer]:
    """Those that were built."""
    return []


@pytest.fixture
def build(trainers: list[FakeTrainer]) -> Callable[..., Any]:
    def build(*_: Any, may_train: Callable[[], bool], **__: Any) -> FakeTrainer:
        trainers.append(FakeTrainer(may_train))
        return trainers[-1]

    return build


@pytest.fixture
def start(others: NamedActors) -> Iterator[Callable[[Callable[..., Any]], DistillerActor]]:
    started = []

    def start(build: Callable[..., Any], max_serving_cost: float = 0.0) -> DistillerActor:
        trainer = {"nice": 0, "max_utilisation": 0.5, "max_serving_cost": max_serving_cost}
        config = load_config(flags={"trainer": trainer})
        names = ActorNames("engine", "distiller", "supervisor")
        intervals = {"ask_interval_s": 0.001, "retry_s": 0.001}
        started.append(DistillerActor(config, "", names, ask=others.ask, build=build, **intervals))
        return started[-1]

    yield start
    for actor in started:
        actor.close()


@pytest.fixture
def trainer(start: Any, build: Callable[..., Any], trainers: list[FakeTrainer]) -> FakeTrainer:
    """Of an actor that runs."""
    start(build)
    wait_for(lambda: trainers, "the trainer to be built")
    return trainers[0]


def test_it_trains_only_while_the_engines_on_its_device_have_time(
    trainer: FakeTrainer, others: NamedActors, engine: ReportingEngine
) -> None:
    def is_seen(busy: float) -> bool:
        engine.busy = busy
        assert engine.share() == 0.0  # it costs nothing where max_serving_cost is 0
        return trainer.may_train()

    wait_for(lambda: is_seen(0.2), "the idle engine to be seen")
    wait_for(lambda: not is_seen(0.8), "the busy engine to be seen")
    wait_for(lambda: is_seen(0.2), "the engine to have time again")
    del others.named["supervisor"]
    wait_for(lambda: not trainer.may_train(), "engines of which nothing is known to be taken for busy ones")


def test_a_busy_engine_leaves_what_training_is_worth(
    start: Any, build: Callable[..., Any], trainers: list[FakeTrainer], engine: ReportingEngine
) -> None:
    engine.busy = 0.9
    engine.share()
    start(build, max_serving_cost=0.1)
    wait_for(lambda: engine.share() == 0.1 * 0.5, "room for a trainer that is worth half of it")
    [trainer] = trainers
    wait_for(trainer.may_train, "the trainer to use it")
    trainer.worth = 0.25
    wait_for(lambda: engine.share() == 0.1 * 0.25, "less room for a trainer that gains less")
    engine.supervisor.set_training_paused(True)
    wait_for(lambda: engine.share() == 0.0 and not trainer.may_train(), "no room while training is paused")
    engine.supervisor.set_training_paused(False)
    wait_for(lambda: engine.share() > 0.0, "room again")
    engine.busy = 0.1
    wait_for(lambda: engine.share() == 0.0 and trainer.may_train(), "an idle engine to leave nothing")


def test_it_pauses_as_the_operator_wants(trainer: FakeTrainer, others: NamedActors) -> None:
    others.named["supervisor"].set_training_paused(True)
    wait_for(lambda: trainer.paused, "the pause")
    others.named["supervisor"] = restarted = SupervisorActor({})
    wait_for(restarted.training_is_paused, "a restarted supervisor to take over what it finds")
    assert trainer.paused
    restarted.set_training_paused(False)
    wait_for(lambda: not trainer.paused, "training to be resumed")


def test_it_does_what_an_operator_demands_once(trainer: FakeTrainer, others: NamedActors) -> None:
    supervisor = others.named["supervisor"]
    supervisor.set_frozen("code", True)
    wait_for(lambda: trainer.demands.frozen == {"code"}, "the domain to be frozen")
    supervisor.train_now()
    wait_for(lambda: trainer.demands.trains_now, "training on demand")
    trainer.demands.met()
    supervisor.publish_candidate()
    wait_for(lambda: trainer.demands.publishes, "publishing on demand")
    trainer.demands.met()
    others.named["supervisor"] = restarted = SupervisorActor({})
    restarted.set_frozen("chat", True)
    wait_for(lambda: trainer.demands.frozen == {"chat"}, "a restarted supervisor to be asked")
    assert not trainer.demands.trains_now and not trainer.demands.publishes


def test_a_trainer_that_cannot_start_says_why_and_is_tried_again(start: Any, build: Callable[..., Any]) -> None:
    problems: list[Exception] = [OsdError("no version yet"), RuntimeError("odd")]

    def fragile(*args: Any, **options: Any) -> FakeTrainer:
        if problems:
            raise problems[0]
        return build(*args, **options)  # type: ignore[no-any-return]

    actor = start(fragile)
    wait_for(lambda: "no version yet" in actor.status().message, "the first problem to be said")
    problems.pop(0)
    wait_for(lambda: "odd" in actor.status().message, "the second one to be said")
    problems.pop(0)
    wait_for(lambda: actor.status().message == "running", "the trainer to run")
