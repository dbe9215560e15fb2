"""The client of the engine actor: what readers see when the engine dies, is full, is slow or does not come back."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from actors.service.client import RayEngineClient
from osd.records.errors import EngineUnavailableError, PromptTooLongError, QueueFullError
from osd.records.events import Event
from osd.records.query import Request, SamplingParams
from osd.records.status import FleetStatus, VersionsStatus
from tests.kit.actor_fakes import FakeEngine, FakeHandle, settle, text_of

LENGTH = 8


def query(request_id: str = "q", max_tokens: int = LENGTH) -> Request:
    return Request(request_id=request_id, prompt_ids=(1, 2), params=SamplingParams(max_tokens=max_tokens))


class Reader:
    """Reads an answer in the background."""

    def __init__(self, client: RayEngineClient, request: Request) -> None:
        self.ids: list[int] = []
        self.text = ""
        self.finishes: list[str] = []
        self._stream = client.generate(request)
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        try:
            async for delta in self._stream:
                self.ids.extend(delta.token_ids)
                self.text += delta.text
                if delta.finish_reason:
                    self.finishes.append(delta.finish_reason)
        finally:
            await self._stream.aclose()

    async def close(self) -> None:
        self.task.cancel()
        await settle()

    def assert_whole(self, length: int = LENGTH) -> None:
        assert self.task.done() and self.task.exception() is None
        assert self.ids == list(range(length))
        assert self.text == "".join(map(text_of, range(length)))
        assert self.finishes == ["length"]


@pytest.fixture
async def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
async def handle(engine: FakeEngine) -> FakeHandle:
    return FakeHandle(engine)


RETRY_S = 0.001


@pytest.fixture
async def client(handle: FakeHandle) -> RayEngineClient:
    return RayEngineClient(handle, None, FakeHandle(None), retry_s=RETRY_S)


async def finish(*readers: Reader) -> None:
    """Wait for the end of their answers, whole or not."""
    _, pending = await asyncio.wait([reader.task for reader in readers], timeout=20)
    assert not pending, "an answer did not end"


async def answer_all(engine: FakeEngine, *readers: Reader) -> None:
    """Step the engine until all these answers have ended."""
    async with asyncio.timeout(20):
        while not all(reader.task.done() for reader in readers):
            await engine.step()
            await asyncio.sleep(RETRY_S)


async def begun(client: RayEngineClient, engine: FakeEngine, num_tokens: int, request: Request) -> Reader:
    reader = Reader(client, request)
    await settle()
    await engine.step(num_tokens)
    assert len(reader.ids) == num_tokens
    return reader


async def test_an_answer_is_streamed_as_it_comes(client: RayEngineClient, engine: FakeEngine) -> None:
    reader = await begun(client, engine, 3, query())
    await engine.step(LENGTH - 3)
    reader.assert_whole()
    assert engine.cancelled == []


async def test_calls_do_not_grow_with_queries_or_tokens(
    client: RayEngineClient, engine: FakeEngine, handle: FakeHandle
) -> None:
    readers = [Reader(client, query(f"q{number}")) for number in range(50)]
    await settle()
    for _ in range(LENGTH):  # between two polls several steps may pass: then one poll brings them all
        await engine.step()
    for reader in readers:
        reader.assert_whole()
    assert handle.num_calls <= 50 + LENGTH + 2


@pytest.mark.parametrize("num_tokens", range(LENGTH))
async def test_a_stream_goes_on_where_the_engine_died(
    client: RayEngineClient, engine: FakeEngine, handle: FakeHandle, num_tokens: int
) -> None:
    reader = await begun(client, engine, num_tokens, query())
    await handle.replace(None)
    assert not reader.task.done()
    successor = FakeEngine()
    await handle.replace(successor)
    await answer_all(successor, reader)
    reader.assert_whole()
    [resumed] = successor.submitted
    assert resumed.resume_ids == tuple(range(num_tokens))
    assert resumed.resume_chars == len("".join(map(text_of, range(num_tokens))))


async def test_tokens_that_died_with_the_engine_are_made_again(
    client: RayEngineClient, engine: FakeEngine, handle: FakeHandle
) -> None:
    reader = await begun(client, engine, 2, query())
    handle.dies_in.append("poll")
    await engine.step(1)
    assert engine.running["q"][1] == 3 and len(reader.ids) == 2
    await handle.replace(successor := FakeEngine())
    await answer_all(successor, reader)
    reader.assert_whole()


async def test_a_lost_reply_is_given_again(client: RayEngineClient, engine: FakeEngine, handle: FakeHandle) -> None:
    reader = Reader(client, query())
    await settle()
    for _ in range(LENGTH):
        handle.lost_replies.append("poll")
        await engine.step()
    await finish(reader)
    reader.assert_whole()
    assert len(engine.submitted) == 1


async def test_an_engine_that_dies_while_it_takes_a_query(
    client: RayEngineClient, engine: FakeEngine, handle: FakeHandle
) -> None:
    await handle.replace(None)
    reader = Reader(client, query())
    await settle()
    await handle.replace(engine)
    await answer_all(engine, reader)
    reader.assert_whole()
    assert engine.submitted == [query()]


async def test_a_query_whose_receipt_was_lost_is_not_run_twice(
    client: RayEngineClient, engine: FakeEngine, handle: FakeHandle
) -> None:
    handle.lost_replies.append("submit")
    reader = Reader(client, query())
    await settle()
    await engine.step(LENGTH)
    await finish(reader)
    reader.assert_whole()
    assert engine.submitted == [query()]


async def test_a_finished_answer_is_not_submitted_again(
    client: RayEngineClient, engine: FakeEngine, handle: FakeHandle
) -> None:
    stream = client.generate(query("slow reader"))
    first = asyncio.create_task(anext(stream))
    other = await begun(client, engine, LENGTH, query("other", 2 * LENGTH))
    assert (await first).token_ids == (0,)
    await handle.replace(successor := FakeEngine())
    await answer_all(successor, other)
    assert [request.request_id for request in successor.submitted] == ["other"]
    rest = [delta async for delta in stream]
    assert [token for delta in rest for token in delta.token_ids] == list(range(1, LENGTH))
    assert successor.cancelled == []


async def test_a_client_thought_dead_goes_on(handle: FakeHandle) -> None:
    now_s = 0.0
    engine = FakeEngine(clock=lambda: now_s)
    await handle.replace(engine)
    client = RayEngineClient(handle, None, FakeHandle(None), retry_s=RETRY_S)
    reader = await begun(client, engine, 3, query())
    now_s = 31.0
    for box in engine.mailboxes._boxes.values():
        box.num_polling = 0  # as when the whole process was stopped and its poll ran out
    for request_id in engine.mailboxes.abandoned():
        await engine.cancel(request_id)
    await handle.replace(engine)  # its outstanding poll belonged to the old box
    await answer_all(engine, reader)
    reader.assert_whole()


@pytest.mark.parametrize("error", [QueueFullError("full"), PromptTooLongError("long"), ValueError("odd")])
async def test_a_refusal_arrives_as_itself(
    client: RayEngineClient, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    async def refuse(*_: Any) -> str:
        raise error

    monkeypatch.setattr(engine, "submit", refuse)
    with pytest.raises(type(error)) as caught:
        await anext(client.generate(query()))
    assert type(caught.value) is type(error) and str(caught.value) == str(error)
    assert engine.cancelled == []


async def test_a_full_successor_takes_queries_as_it_can(
    client: RayEngineClient, engine: FakeEngine, handle: FakeHandle
) -> None:
    readers = [Reader(client, query(f"q{number}")) for number in range(3)]
    await settle()
    await engine.step(2)
    await handle.replace(successor := FakeEngine(room=1))
    await answer_all(successor, *readers)
    for reader in readers:
        reader.assert_whole()
    assert len(successor.submitted) == 3


async def test_a_reader_that_leaves_frees_its_row(client: RayEngineClient, engine: FakeEngine) -> None:
    reader = await begun(client, engine, 2, query())
    await reader.close()
    assert engine.cancelled == ["q"]


async def test_a_reader_that_leaves_while_its_query_is_taken(
    client: RayEngineClient, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit, go_on = engine.submit, asyncio.Event()

    async def slow(client_id: str, request: Request) -> str:
        await go_on.wait()
        return await submit(client_id, request)

    monkeypatch.setattr(engine, "submit", slow)
    reader = Reader(client, query())
    await settle()
    await reader.close()
    assert engine.cancelled == ["q"]


async def test_an_engine_that_stays_away_is_given_up(handle: FakeHandle) -> None:
    client = RayEngineClient(handle, None, FakeHandle(None), give_up_s=0.05, retry_s=RETRY_S)
    reader = Reader(client, query())
    await settle()
    await handle.replace(None)
    await finish(reader)
    assert isinstance(reader.task.exception(), EngineUnavailableError)
    await handle.replace(successor := FakeEngine())
    later = Reader(client, query("later"))
    await answer_all(successor, later)
    later.assert_whole()


async def test_an_engine_that_was_away_long_ago_is_not_given_up_at_once(handle: FakeHandle) -> None:
    now_s = 0.0
    client = RayEngineClient(handle, None, FakeHandle(None), retry_s=RETRY_S, clock=lambda: now_s)
    await handle.replace(None)
    left = Reader(client, query("left"))
    await settle()
    await left.close()
    async with asyncio.timeout(20):
        while client._opened.is_set():  # until the poller has nothing to do
            await asyncio.sleep(0.001)
    now_s = 3600.0
    reader = Reader(client, query())
    await settle()
    assert not reader.task.done()
    await handle.replace(successor := FakeEngine())
    await answer_all(successor, reader)
    reader.assert_whole()


async def test_an_engine_that_cannot_be_loaded_says_so(
    client: RayEngineClient, engine: FakeEngine, handle: FakeHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = await begun(client, engine, 2, query())

    async def refuse(*_: Any) -> Any:
        raise EngineUnavailableError("the engine cannot be loaded: no memory")

    successor = FakeEngine()
    monkeypatch.setattr(successor, "poll", refuse)
    await handle.replace(successor)
    await finish(reader)
    error = reader.task.exception()
    assert isinstance(error, EngineUnavailableError) and "no memory" in str(error)


async def test_one_refused_query_does_not_end_the_others(
    client: RayEngineClient, engine: FakeEngine, handle: FakeHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlucky, lucky = Reader(client, query("unlucky")), Reader(client, query("lucky"))
    await settle()
    await engine.step(2)
    successor = FakeEngine()
    submit = successor.submit

    async def picky(client_id: str, request: Request) -> str:
        if request.request_id == "unlucky":
            raise ValueError("not with me")
        return await submit(client_id, request)

    monkeypatch.setattr(successor, "submit", picky)
    await handle.replace(successor)
    await answer_all(successor, lucky)
    lucky.assert_whole()
    error = unlucky.task.exception()
    assert isinstance(error, EngineUnavailableError) and "not with me" in str(error)


class FakeActor:
    """The rest of what the client asks."""

    def __init__(self, *events: Event) -> None:
        self._events = list(events)
        self.wishes: list[bool] = []

    async def events(self, limit: int) -> list[Event]:
        return self._events[-limit:]

    async def restarts(self) -> dict[str, int]:
        return {"engine": 2}

    async def processes(self) -> dict[str, int]:
        return {"engine": 5}

    async def fleet_status(self) -> FleetStatus:
        return FleetStatus(versions=VersionsStatus(confirmed=3))

    async def set_training_paused(self, paused: bool) -> None:
        self.wishes.append(paused)


async def test_events_of_all_actors_in_their_order() -> None:
    events = [Event(at_s=float(at), kind="restart", message=str(at)) for at in range(6)]
    parts = [FakeHandle(FakeActor(*events[start::3])) for start in range(3)]
    client = RayEngineClient(*parts)
    assert await client.events(100) == events
    assert await client.events(2) == events[-2:]
    await parts[1].replace(None)
    assert await client.events(100) == [event for at, event in enumerate(events) if at % 3 != 1]


async def test_a_status_shows_what_there_is() -> None:
    supervisor = FakeHandle(FakeActor())
    client = RayEngineClient(FakeHandle(None), FakeHandle(None), supervisor, processes={"redis": lambda: None})
    status = await client.status()
    assert not status.ready and status.engine is None and status.trainer is None
    assert status.restarts == {"engine": 2} and status.versions == VersionsStatus(confirmed=3)
    assert status.processes.keys() == {"engine", "server"}
    await supervisor.replace(None)
    assert (await client.status()).processes.keys() == {"server"}


async def test_a_trainer_that_is_switched_off_is_told_from_one_that_is_away() -> None:
    client = RayEngineClient(FakeHandle(None), None, FakeHandle(FakeActor()))
    trainer = (await client.status()).trainer
    assert trainer is not None and trainer.state == "off" and "trainer.enabled" in trainer.message


async def test_what_cannot_be_asked_now_is_unavailable() -> None:
    supervisor = FakeActor()
    handle = FakeHandle(supervisor)
    client = RayEngineClient(FakeHandle(None), None, handle)
    for ask in (client.versions(),):
        with pytest.raises(EngineUnavailableError):
            await ask
    await client.pause_training()
    await client.resume_training()
    assert supervisor.wishes == [True, False]
    await handle.replace(None)
    for wish in (client.pause_training(), client.roll_back(1, "because"), client.pin(1, "because"), client.unpin()):
        with pytest.raises(EngineUnavailableError):
            await wish
