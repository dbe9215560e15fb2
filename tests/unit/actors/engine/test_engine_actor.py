"""The engine's actor, without Ray: it is a plain class until it is given to it."""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from actors.engine.engine import EngineActor
from actors.engine.mailbox import Mailboxes
from actors.supervisor.supervisor import SupervisorActor
from osd.assembly.assemble import EngineAssembly
from osd.config.settings import load_config
from osd.drafters.router import DomainRouter
from osd.engine.loop import EngineLoop
from osd.records.errors import EngineUnavailableError, OsdError, QueueFullError
from osd.records.query import DomainFrom, Request, SamplingParams, TokenDelta
from tests.kit.engine_kit import Answers, make_engine, make_target, plain_greedy, tiny_llama
from tests.kit.named_actors import NamedActors
from tests.kit.waiting import PATIENCE_S

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


async def is_ready(actor: EngineActor) -> bool:
    try:
        await actor.ready()
    except OsdError:
        return False
    return True


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """An engine's process leaves what it has loaded out of collections; this one goes on."""
    yield
    gc.unfreeze()


@pytest.fixture
async def actor() -> AsyncIterator[EngineActor]:
    actor = EngineActor(load_config(), "", assemble=assemble)
    yield actor
    await actor.ready()
    await actor.close()


async def test_clients_get_their_own_answers(actor: EngineActor) -> None:
    for client_id in ("a", "b"):
        await actor.submit(client_id, query(f"{client_id}1"))
    for client_id in ("a", "b"):
        answers = await read(actor, client_id, 1)
        assert {name: answer.ids for name, answer in answers.items()} == {
            f"{client_id}1": plain_greedy(MODEL, PROMPT, 12)
        }
    assert (await actor.status()).running == 0
    assert len(await actor.history(10)) == 2


async def test_it_tells_how_far_it_is() -> None:
    def telling(*arguments: Any, on_progress: Any, **named: Any) -> EngineAssembly:
        on_progress("loading the target")
        return assemble(*arguments, **named)

    actor = EngineActor(load_config(), "", assemble=telling)
    await actor.ready()
    assert await actor.progress() == ["loading the target"]
    await actor.close()


async def test_a_repeated_submission_changes_nothing(actor: EngineActor) -> None:
    box_id = await actor.submit("a", query("a1"))
    assert await actor.submit("a", query("a1")) == box_id
    answers = await read(actor, "a", 1)
    assert answers["a1"].ids == plain_greedy(MODEL, PROMPT, 12)
    assert (await actor.status()).counters["queries_total"] == 1


async def test_queries_without_a_domain_are_routed_by_their_prompts() -> None:
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


async def test_a_full_queue_is_said_to_who_asks() -> None:
    actor = EngineActor(load_config(), "", assemble=partial(assemble, is_stuck=True))
    for number in range(4):
        await actor.submit("a", query(f"a{number}"))
    with pytest.raises(QueueFullError):
        await actor.submit("a", query("a4"))
    await actor.close()


async def test_queries_of_a_dead_client_are_cancelled() -> None:
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


async def test_what_hinders_loading_is_said_and_tried_again() -> None:
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


async def test_an_engine_reports_and_the_supervisor_knows_it() -> None:
    supervisor = SupervisorActor({})
    flags = {"engine": {"id": "one"}, "cluster": {"report_interval_s": 0.1}}
    others = NamedActors({"supervisor": supervisor})
    actor = EngineActor(load_config(flags=flags), "", "supervisor", ask=others.ask, assemble=assemble)
    try:
        await actor.submit("a", query("a1"))
        await read(actor, "a", 1)
        async with asyncio.timeout(PATIENCE_S):
            while not (reports := supervisor.engines()) or reports[0].free_rows < 2:  # the query may hold a row still
                await asyncio.sleep(0.01)
        [report] = reports
        assert (report.engine_id, report.pid, report.device) == ("one", os.getpid(), "cpu")
        assert 0 < report.device_used_bytes < report.device_bytes
        assert actor.orders.session
    finally:
        await actor.close()
