"""The actors' own logic, without Ray: they are plain classes until they are given to it."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pytest

from actors.distiller import DistillerActor
from actors.engine import EngineActor
from actors.mailbox import Mailboxes
from actors.names import ActorNames
from actors.node import node_id
from actors.supervisor import SupervisorActor
from osd.assembly.assemble import EngineAssembly
from osd.config.settings import load_config
from osd.drafters.router import DomainRouter
from osd.engine.loop import EngineLoop
from osd.records.errors import EngineUnavailableError, OsdError, QueueFullError
from osd.records.query import DomainFrom, Request, SamplingParams, TokenDelta
from osd.records.status import TrainerStatus
from tests.kit.engine_kit import Answers, make_engine, make_target, plain_greedy, tiny_llama
from tests.kit.reports import engine_report
from tests.kit.waiting import PATIENCE_S, wait_for
from trainer.demands import Demands

MODEL = tiny_llama()
PROMPT = (3, 1, 4, 1, 5)


def query(request_id: str, max_tokens: int = 12) -> Request:
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens)
    return Request(request_id=request_id, prompt_ids=PROMPT, params=params)


def assemble(*_: Any, deliver: Any, on_event: Any, is_stuck: bool = False, **__: Any) -> EngineAssembly:
    """An engine for two queries, and two that wait; a stuck one takes queries and cancels them, but has no tokens."""
    engine = make_engine(make_target(MODEL, num_slots=2), max_waiting=2, on_event=on_event)

    def no_step() -> list[TokenDelta]:
        time.sleep(0.001)
        return []

    if is_stuck:
        engine.step = no_step  # type: ignore[method-assign]
    loop = EngineLoop(engine, deliver)
    loop.start()
    return EngineAssembly(loop, None, engine.codec, engine.grammars, None, None)  # type: ignore[arg-type]


async def read(actor: EngineActor, client_id: str, num_answers: int) -> Answers:
    """Poll, acknowledging as a client does, until so many queries have ended."""
    answers, box_id, num_received = Answers(), None, 0
    async with asyncio.timeout(PATIENCE_S):
        while sum(answer.finish_reason is not None for answer in answers.values()) < num_answers:
            found, deltas = await actor.poll(client_id, 5, box_id, num_received)
            box_id, num_received = found, (num_received if found == box_id else 0) + len(deltas)
            answers.add(deltas)
    return answers


class TestEngineActor:
    @pytest.fixture(autouse=True)
    def collected(self) -> Iterator[None]:
        """An engine's process leaves what it has loaded out of collections; this one goes on."""
        yield
        gc.unfreeze()

    @pytest.fixture
    async def actor(self) -> AsyncIterator[EngineActor]:
        actor = EngineActor(load_config(), "", assemble=assemble)
        yield actor
        await actor.ready()
        await actor.close()

    async def test_clients_get_their_own_answers(self, actor: EngineActor) -> None:
        for client_id in ("a", "b"):
            await actor.submit(client_id, query(f"{client_id}1"))
        for client_id in ("a", "b"):
            answers = await read(actor, client_id, 1)
            assert {name: answer.ids for name, answer in answers.items()} == {
                f"{client_id}1": plain_greedy(MODEL, PROMPT, 12)
            }
        assert (await actor.status()).running == 0
        assert len(await actor.history(10)) == 2

    async def test_it_tells_how_far_it_is(self) -> None:
        def telling(*arguments: Any, on_progress: Any, **named: Any) -> EngineAssembly:
            on_progress("loading the target")
            return assemble(*arguments, **named)

        actor = EngineActor(load_config(), "", assemble=telling)
        await actor.ready()
        assert await actor.progress() == ["loading the target"]
        await actor.close()

    async def test_a_repeated_submission_changes_nothing(self, actor: EngineActor) -> None:
        box_id = await actor.submit("a", query("a1"))
        assert await actor.submit("a", query("a1")) == box_id
        answers = await read(actor, "a", 1)
        assert answers["a1"].ids == plain_greedy(MODEL, PROMPT, 12)
        assert (await actor.status()).counters["queries_total"] == 1

    async def test_queries_without_a_domain_are_routed_by_their_prompts(self) -> None:
        router = DomainRouter()
        for number in range(40):
            router.learn("sql", (*PROMPT, 10 + number % 3))

        def routing(*arguments: Any, **named: Any) -> EngineAssembly:
            return replace(assemble(*arguments, **named), router=router)

        actor = EngineActor(load_config(), "", assemble=routing)
        asked: list[tuple[str, DomainFrom, int]] = [
            ("unnamed", "none", 11),
            ("named", "named", 11),
            ("strange", "none", 20),
        ]
        for name, domain_from, last in asked:
            asking = replace(query(name), prompt_ids=(*PROMPT, last), domain_from=domain_from)
            await actor.submit("a", asking)
        answers = await read(actor, "a", 3)
        for name, _, last in asked:
            assert answers[name].ids == plain_greedy(MODEL, (*PROMPT, last), 12)
        assert sorted(point.domain for point in await actor.history(10)) == ["default", "default", "sql"]
        assert (await actor.status()).counters["routed_queries_total"] == 1
        await actor.close()

    async def test_a_full_queue_is_said_to_who_asks(self) -> None:
        actor = EngineActor(load_config(), "", assemble=partial(assemble, is_stuck=True))
        for number in range(4):
            await actor.submit("a", query(f"a{number}"))
        with pytest.raises(QueueFullError):
            await actor.submit("a", query("a4"))
        await actor.close()

    async def test_queries_of_a_dead_client_are_cancelled(self) -> None:
        actor = EngineActor(
            load_config(),
            "",
            assemble=partial(assemble, is_stuck=True),
            mailboxes=Mailboxes(gone_after_s=0.02),
            reap_interval_s=0.01,
        )
        await actor.submit("dead", query("d1"))
        async with asyncio.timeout(PATIENCE_S):
            while (await actor.status()).waiting:
                await asyncio.sleep(0.01)
        assert (await actor.status()).counters["queries_cancelled_total"] == 1
        await actor.close()

    async def test_what_hinders_loading_is_said_and_tried_again(self) -> None:
        mended = False

        def fragile(*args: Any, **options: Any) -> EngineAssembly:
            if not mended:
                raise OsdError("the disk is full")
            return assemble(*args, **options)

        actor = EngineActor(load_config(), "", assemble=fragile, retry_s=0.01)
        with pytest.raises(OsdError, match=r"^the disk is full$"):
            await actor.ready()
        with pytest.raises(EngineUnavailableError, match="cannot be loaded: the disk is full"):
            await actor.submit("a", query("a1"))
        await actor.close()
        mended = True
        async with asyncio.timeout(PATIENCE_S):
            while not await is_ready(actor):
                await asyncio.sleep(0.001)
        await actor.submit("a", query("a1"))
        assert (await read(actor, "a", 1))["a1"].ids == plain_greedy(MODEL, PROMPT, 12)
        await actor.close()


async def is_ready(actor: EngineActor) -> bool:
    try:
        await actor.ready()
    except OsdError:
        return False
    return True


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


@dataclass
class FakeActors:
    """Plain objects that are asked by name; one that is not there now raises, as Ray does."""

    named: dict[str, Any]
    num_misses: Counter[str] = field(default_factory=Counter)
    """Questions to an actor that was away, by its name."""

    def ask(self, actor: str, method: str, *args: Any, timeout_s: float) -> Any:
        if (found := self.named.get(actor)) is None:
            self.num_misses[actor] += 1
            raise ValueError(actor)
        return getattr(found, method)(*args)


@dataclass
class FakeEngine:
    """An engine on the distiller's device."""

    supervisor: SupervisorActor
    busy: float = 0.0
    pid: int = 0
    reports: int = 0

    def share(self) -> float:
        """What it is to leave to training, in answer to a report."""
        report = engine_report("one", node=node_id(), number=self.reports, utilisation=self.busy)
        self.reports += 1
        return self.supervisor.report(report).training_share

    def ping(self) -> int:
        return self.pid


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(SupervisorActor({}), pid=os.getpid())


@pytest.fixture
def others(engine: FakeEngine) -> FakeActors:
    return FakeActors({"engine": engine, "supervisor": engine.supervisor})


class TestDistillerActor:
    @pytest.fixture
    def trainers(self) -> list[FakeTrainer]:
        """Those that were built."""
        return []

    @pytest.fixture
    def build(self, trainers: list[FakeTrainer]) -> Callable[..., Any]:
        def build(*_: Any, may_train: Callable[[], bool], **__: Any) -> FakeTrainer:
            trainers.append(FakeTrainer(may_train))
            return trainers[-1]

        return build

    @pytest.fixture
    def start(self, others: FakeActors) -> Iterator[Callable[[Callable[..., Any]], DistillerActor]]:
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
    def trainer(self, start: Any, build: Callable[..., Any], trainers: list[FakeTrainer]) -> FakeTrainer:
        """Of an actor that runs."""
        start(build)
        wait_for(lambda: trainers, "the trainer to be built")
        return trainers[0]

    def test_it_trains_only_while_the_engines_on_its_device_have_time(
        self, trainer: FakeTrainer, others: FakeActors, engine: FakeEngine
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
        self, start: Any, build: Callable[..., Any], trainers: list[FakeTrainer], engine: FakeEngine
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

    def test_it_pauses_as_the_operator_wants(self, trainer: FakeTrainer, others: FakeActors) -> None:
        others.named["supervisor"].set_training_paused(True)
        wait_for(lambda: trainer.paused, "the pause")
        others.named["supervisor"] = restarted = SupervisorActor({})
        wait_for(restarted.training_is_paused, "a restarted supervisor to take over what it finds")
        assert trainer.paused
        restarted.set_training_paused(False)
        wait_for(lambda: not trainer.paused, "training to be resumed")

    def test_it_does_what_an_operator_demands_once(self, trainer: FakeTrainer, others: FakeActors) -> None:
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

    def test_a_trainer_that_cannot_start_says_why_and_is_tried_again(
        self, start: Any, build: Callable[..., Any]
    ) -> None:
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


def test_the_supervisor_notices_restarts(others: FakeActors, engine: FakeEngine) -> None:
    watched = {"engine": "engine", "distiller": "distiller"}
    supervisor = SupervisorActor(watched, ask=others.ask, ping_interval_s=0.001)
    wait_for(lambda: "engine" in supervisor.processes(), "the first ping to be answered")
    del others.named["engine"]
    wait_for(lambda: others.num_misses["engine"], "a ping that nobody answers")
    engine.pid = os.getppid()
    others.named["engine"] = engine
    wait_for(lambda: supervisor.restarts()["engine"], "the restart to be noticed")
    supervisor.close()
    assert supervisor.restarts() == {"engine": 1, "distiller": 0}
    [event] = supervisor.events(10)
    assert event.kind == "restart" and f"{os.getpid()} -> {os.getppid()}" in event.message
    assert "supervisor" in supervisor.processes()


async def test_an_engine_reports_and_the_supervisor_knows_it() -> None:
    supervisor = SupervisorActor({})
    flags = {"engine": {"id": "one"}, "cluster": {"report_interval_s": 0.1}}
    others = FakeActors({"supervisor": supervisor})
    actor = EngineActor(load_config(flags=flags), "", "supervisor", ask=others.ask, assemble=assemble)
    try:
        await actor.submit("a", query("a1"))
        await read(actor, "a", 1)
        async with asyncio.timeout(PATIENCE_S):
            while not (reports := supervisor.engines()):
                await asyncio.sleep(0.01)
        [report] = reports
        assert (report.engine_id, report.pid, report.device) == ("one", os.getpid(), "cpu")
        assert report.free_rows == 2
        assert actor.orders.session
    finally:
        await actor.close()
        gc.unfreeze()
