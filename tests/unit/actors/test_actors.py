"""The actors' own logic, without Ray: they are plain classes until they are given to it."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

import actors.engine
from actors.distiller import DistillerActor
from actors.engine import EngineActor
from actors.mailbox import Mailboxes
from actors.names import ActorNames
from actors.resident_memory import resident_bytes
from actors.supervisor import SupervisorActor
from osd.assembly.assemble import EngineAssembly
from osd.config.settings import load_config
from osd.engine.loop import EngineLoop
from osd.records.errors import EngineUnavailableError, OsdError, QueueFullError
from osd.records.query import Request, SamplingParams, TokenDelta
from tests.kit.engine_kit import Answers, make_engine, make_target, plain_greedy, tiny_llama

MODEL = tiny_llama()
PROMPT = (3, 1, 4, 1, 5)


def query(request_id: str, max_tokens: int = 12) -> Request:
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens)
    return Request(request_id=request_id, prompt_ids=PROMPT, params=params)


def assemble(*_: Any, deliver: Any, on_event: Any, step_s: float = 0.0, **__: Any) -> EngineAssembly:
    """An engine whose steps take at least so long."""
    engine = make_engine(make_target(MODEL, num_slots=2), max_waiting=2, on_event=on_event)
    step = engine.step

    def slow_step() -> list[TokenDelta]:
        time.sleep(step_s)
        return step()

    engine.step = slow_step  # type: ignore[method-assign]
    loop = EngineLoop(engine, deliver)
    loop.start()
    return EngineAssembly(loop, None, engine.codec, None, None)  # type: ignore[arg-type]


async def read(actor: EngineActor, client_id: str, num_answers: int) -> Answers:
    """Poll, acknowledging as a client does, until so many queries have ended."""
    answers, box_id, num_received = Answers(), None, 0
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

    @pytest.fixture(autouse=True)
    def quick(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("osd.assembly.assemble.assemble_engine", assemble)
        monkeypatch.setattr(actors.engine, "_REAP_INTERVAL_S", 0.01)
        monkeypatch.setattr(actors.engine, "_RETRY_S", 0.01)

    @pytest.fixture
    async def actor(self, quick: None) -> AsyncIterator[EngineActor]:
        actor = EngineActor(load_config(), "")
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

    async def test_it_tells_how_far_it_is(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def telling(*arguments: Any, on_progress: Any, **named: Any) -> EngineAssembly:
            on_progress("loading the target")
            return assemble(*arguments, **named)

        monkeypatch.setattr("osd.assembly.assemble.assemble_engine", telling)
        actor = EngineActor(load_config(), "")
        await actor.ready()
        assert await actor.progress() == ["loading the target"]
        await actor.close()

    async def test_a_repeated_submission_changes_nothing(self, actor: EngineActor) -> None:
        box_id = await actor.submit("a", query("a1"))
        assert await actor.submit("a", query("a1")) == box_id
        answers = await read(actor, "a", 1)
        assert answers["a1"].ids == plain_greedy(MODEL, PROMPT, 12)
        assert (await actor.status()).counters["queries_total"] == 1

    async def test_a_full_queue_is_said_to_who_asks(self, actor: EngineActor) -> None:
        for number in range(4):
            await actor.submit("a", query(f"a{number}", 50))
        with pytest.raises(QueueFullError):
            for number in range(4, 9):
                await actor.submit("a", query(f"a{number}", 50))

    async def test_queries_of_a_dead_client_are_cancelled(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(actors.engine, "Mailboxes", partial(Mailboxes, gone_after_s=0.02))
        monkeypatch.setattr("osd.assembly.assemble.assemble_engine", partial(assemble, step_s=0.01))
        actor = EngineActor(load_config(), "")
        await actor.submit("dead", query("d1", 50))
        deadline_s = time.monotonic() + 30
        while (await actor.status()).running:
            assert time.monotonic() < deadline_s
            await asyncio.sleep(0.01)
        assert (await actor.status()).counters["queries_cancelled_total"] == 1
        await actor.close()

    async def test_what_hinders_loading_is_said_and_tried_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        mended = False

        def fragile(*args: Any, **options: Any) -> EngineAssembly:
            if not mended:
                raise OsdError("the disk is full")
            return assemble(*args, **options)

        monkeypatch.setattr("osd.assembly.assemble.assemble_engine", fragile)
        actor = EngineActor(load_config(), "")
        with pytest.raises(OsdError, match=r"^the disk is full$"):
            await actor.ready()
        with pytest.raises(EngineUnavailableError, match="cannot be loaded: the disk is full"):
            await actor.submit("a", query("a1"))
        await actor.close()
        mended = True
        while not actor._opening.done() or actor._opening.exception():
            await asyncio.sleep(0.001)
        await actor.submit("a", query("a1"))
        assert (await read(actor, "a", 1))["a1"].ids == plain_greedy(MODEL, PROMPT, 12)
        await actor.close()


@dataclass
class FakeTrainer:
    """Runs until it is stopped."""

    paused: bool = False

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    def run_forever(self, stop: Any) -> None:
        stop.wait()

    def status(self) -> str:
        return "running"


@dataclass
class FakeRay:
    """`ray.get(ray.get_actor(name).method.remote(…))` over plain objects."""

    named: dict[str, Any] = field(default_factory=dict)

    def get_actor(self, name: str) -> Any:
        if name not in self.named:
            raise ValueError(name)
        actor = self.named[name]
        return SimpleNamespace(
            **{
                method: SimpleNamespace(remote=getattr(actor, method))
                for method in dir(actor)
                if not method.startswith("_")
            }
        )

    @staticmethod
    def get(value: Any, timeout: float) -> Any:
        return value


class FakeEngine:
    busy = 0.0
    pid = 1

    def utilisation(self) -> float:
        return self.busy

    def ping(self) -> int:
        return self.pid


@pytest.fixture
def fake_ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    made = FakeRay({"engine": FakeEngine(), "supervisor": SupervisorActor({})})
    for module in ("actors.distiller", "actors.supervisor"):
        monkeypatch.setattr(f"{module}.ray", made)
    monkeypatch.setattr("actors.distiller._ASK_INTERVAL_S", 0.001)
    monkeypatch.setattr("actors.distiller._RETRY_S", 0.001)
    monkeypatch.setattr("actors.supervisor._PING_INTERVAL_S", 0.001)
    return made


def becomes(condition: Callable[[], bool]) -> bool:
    deadline_s = time.monotonic() + 30
    while not condition() and time.monotonic() < deadline_s:
        time.sleep(0.002)
    return condition()


class TestDistillerActor:
    @pytest.fixture
    def trainer(self, monkeypatch: pytest.MonkeyPatch) -> FakeTrainer:
        trainer = FakeTrainer()
        monkeypatch.setattr(DistillerActor, "_build", lambda actor: trainer)
        return trainer

    @pytest.fixture
    def actor(self, fake_ray: FakeRay, trainer: FakeTrainer) -> Iterator[DistillerActor]:
        config = load_config(flags={"trainer": {"nice": 0, "max_utilisation": 0.5}})
        actor = DistillerActor(config, "", ActorNames("engine", "distiller", "supervisor"))
        yield actor
        actor.close()

    def test_it_trains_only_while_the_engine_has_time(self, actor: DistillerActor, fake_ray: FakeRay) -> None:
        assert becomes(actor._may_train)
        fake_ray.named["engine"].busy = 0.8
        assert becomes(lambda: not actor._may_train())
        fake_ray.named["engine"].busy = 0.2
        assert becomes(actor._may_train)
        del fake_ray.named["engine"]
        assert becomes(lambda: not actor._may_train()), "an engine that loads or is overloaded does not answer"

    def test_it_pauses_as_the_operator_wants(
        self, actor: DistillerActor, trainer: FakeTrainer, fake_ray: FakeRay
    ) -> None:
        supervisor = fake_ray.named["supervisor"]
        supervisor.set_training_paused(True)
        assert becomes(lambda: trainer.paused)
        fake_ray.named["supervisor"] = restarted = SupervisorActor({})
        assert becomes(lambda: restarted._paused is True), "a restarted supervisor takes over what it finds"
        assert trainer.paused
        restarted.set_training_paused(False)
        assert becomes(lambda: not trainer.paused)

    def test_a_trainer_that_cannot_start_says_why_and_is_tried_again(
        self, fake_ray: FakeRay, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        problems: list[Exception] = [OsdError("no version yet"), RuntimeError("odd")]

        def build(_: DistillerActor) -> FakeTrainer:
            if problems:
                raise problems[0]
            return FakeTrainer()

        monkeypatch.setattr(DistillerActor, "_build", build)
        config = load_config(flags={"trainer": {"nice": 0}})
        actor = DistillerActor(config, "", ActorNames("engine", "distiller", "supervisor"))
        assert becomes(lambda: "no version yet" in actor.status().message)
        problems.pop(0)
        assert becomes(lambda: "odd" in actor.status().message)
        problems.pop(0)
        assert becomes(lambda: str(actor.status()) == "running")
        actor.close()


def test_the_supervisor_notices_restarts(fake_ray: FakeRay) -> None:
    engine = fake_ray.named["engine"]
    supervisor = SupervisorActor({"engine": "engine", "distiller": "distiller"})
    assert becomes(lambda: supervisor._pids == {"engine": 1})
    del fake_ray.named["engine"]
    time.sleep(0.01)
    engine.pid = 2
    fake_ray.named["engine"] = engine
    assert becomes(lambda: supervisor.restarts() == {"engine": 1, "distiller": 0})
    [event] = supervisor.events(10)
    assert event.kind == "restart" and "1 -> 2" in event.message
    assert "supervisor" in supervisor.processes()
    supervisor.close()


def test_processes_that_are_gone_are_left_out() -> None:
    assert resident_bytes({"none": None, "gone": 2**22 + 1}) == {}
