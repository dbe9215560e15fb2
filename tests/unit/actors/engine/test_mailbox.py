"""Boxes of deltas: order, acknowledgement, and clients that are gone."""

from __future__ import annotations

import asyncio
import threading

import pytest

from actors.engine.mailbox import Mailboxes
from osd.records.query import FinishReason, TokenDelta
from tests.kit.clock import Clock


@pytest.fixture
async def clock() -> Clock:
    return Clock()


@pytest.fixture
async def boxes(clock: Clock) -> Mailboxes:
    made = Mailboxes(gone_after_s=30.0, clock=clock)
    made.attach()
    return made


def delta(request_id: str, token: int, finish_reason: FinishReason | None = None) -> TokenDelta:
    return TokenDelta(request_id=request_id, token_ids=(token,), finish_reason=finish_reason)


async def test_each_client_gets_its_own_in_order(boxes: Mailboxes) -> None:
    boxes.expect("a", "a1")
    boxes.expect("b", "b1")
    boxes.expect("a", "a2")
    boxes.post([delta("a1", 1), delta("b1", 2), delta("a2", 3)])
    boxes.post([delta("a1", 4), delta("nobody's", 5)])
    await asyncio.sleep(0)
    assert (await boxes.poll("a", 1, None, 0))[1] == [delta("a1", 1), delta("a2", 3), delta("a1", 4)]
    assert (await boxes.poll("b", 1, None, 0))[1] == [delta("b1", 2)]


async def test_a_poll_waits_for_the_first_delta_of_another_thread(boxes: Mailboxes) -> None:
    boxes.expect("a", "a1")
    waiting = asyncio.create_task(boxes.poll("a", 60, boxes.open("a"), 0))
    await asyncio.sleep(0)
    assert not waiting.done()
    await asyncio.to_thread(boxes.post, [delta("a1", 1)])
    assert (await waiting)[1] == [delta("a1", 1)]


async def test_a_poll_that_waited_for_nothing(boxes: Mailboxes) -> None:
    box_id = boxes.open("a")
    assert await boxes.poll("a", 0.001, box_id, 0) == (box_id, [])


@pytest.mark.parametrize("known", [None, "that of a dead engine"])
async def test_who_knows_another_box_is_told_at_once(boxes: Mailboxes, known: str | None) -> None:
    assert await boxes.poll("a", 1e9, known, 7) == (boxes.open("a"), [])


async def test_what_is_not_acknowledged_is_given_again(boxes: Mailboxes) -> None:
    boxes.expect("a", "a1")
    boxes.post([delta("a1", 1), delta("a1", 2)])
    await asyncio.sleep(0)
    box_id, lost = await boxes.poll("a", 1, None, 0)
    boxes.post([delta("a1", 3)])
    await asyncio.sleep(0)
    assert await boxes.poll("a", 1, box_id, 0) == (box_id, [*lost, delta("a1", 3)])
    assert await boxes.poll("a", 1, box_id, 1) == (box_id, [delta("a1", 2), delta("a1", 3)])
    assert await boxes.poll("a", 0.001, box_id, 3) == (box_id, [])
    assert await boxes.poll("a", 0.001, box_id, 1) == (box_id, []), "an older poll that comes late changes nothing"


async def test_a_count_from_another_box_acknowledges_nothing(boxes: Mailboxes) -> None:
    boxes.expect("a", "a1")
    boxes.post([delta("a1", 1)])
    await asyncio.sleep(0)
    assert (await boxes.poll("a", 1, "that of a dead engine", 7))[1] == [delta("a1", 1)]


async def test_a_query_is_held_until_its_end_is_acknowledged(boxes: Mailboxes) -> None:
    boxes.expect("a", "a1")
    boxes.post([delta("a1", 1, "stop")])
    await asyncio.sleep(0)
    box_id, _ = await boxes.poll("a", 1, None, 0)
    assert boxes.holds("a", "a1") and not boxes.holds("b", "a1")
    await boxes.poll("a", 0.001, box_id, 1)
    assert not boxes.holds("a", "a1")


async def test_a_client_that_stops_polling_loses_its_queries(boxes: Mailboxes, clock: Clock) -> None:
    boxes.expect("a", "a1")
    boxes.expect("b", "b1")
    await asyncio.sleep(0)
    before = boxes.open("a")
    polling = asyncio.create_task(boxes.poll("b", 60, boxes.open("b"), 0))
    await asyncio.sleep(0)
    clock.now_s = 31.0
    assert boxes.abandoned() == ["a1"]
    assert boxes.abandoned() == []
    assert boxes.open("a") != before, "it can see that it was given up"
    boxes.post([delta("a1", 1, "cancelled"), delta("b1", 2)])
    assert (await polling)[1] == [delta("b1", 2)]
    assert (await boxes.poll("a", 0.001, before, 0))[1] == []


async def test_calls_of_a_thread_take_effect_in_their_order(boxes: Mailboxes) -> None:
    """A query that is submitted again under its id gets nothing of what its first run left behind."""

    def engine_thread() -> None:
        boxes.post([delta("a1", 1, "cancelled")])
        boxes.expect("a", "a1")
        boxes.post([delta("a1", 2)])

    thread = threading.Thread(target=engine_thread)
    thread.start()
    thread.join(20)
    assert (await boxes.poll("a", 60, boxes.open("a"), 0))[1] == [delta("a1", 2)]


async def test_a_client_that_leaves_is_forgotten(boxes: Mailboxes, clock: Clock) -> None:
    former = boxes.open("a")
    boxes.expect("a", "a1")
    boxes.expect("b", "b1")
    await asyncio.sleep(0)
    boxes.close("a")
    boxes.close("a")
    boxes.post([delta("a1", 1), delta("b1", 2)])
    await asyncio.sleep(0)
    assert not boxes.holds("a", "a1") and boxes.open("a") != former
    assert (await boxes.poll("b", 1, None, 0))[1] == [delta("b1", 2)]
    clock.now_s = 31.0
    assert boxes.abandoned() == ["b1"]
