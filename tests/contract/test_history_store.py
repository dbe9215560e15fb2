"""The history against a real Redis: bounded in number and bytes, whole after it was away."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from osd.io.history_store import RedisHistory
from osd.monitor.buckets import TIERS, Bucket, HistoryQuery, Series, Tier
from osd.monitor.history import History
from osd.records.errors import OutcomeSinkError
from osd.records.events import Event
from tests.contract.conftest import RedisServer
from tests.kit.history_stores import SetClock

pytestmark = pytest.mark.redis

NOON_S = 1_800_000_000.0


@pytest.fixture
def store(redis_server: RedisServer) -> Iterator[RedisHistory]:
    one = RedisHistory(redis_server.url, "osd:history", max_bytes=1 << 20)
    yield one
    one.close()


def bucket(at_s: float, rounds: float = 1.0) -> Bucket:
    return Bucket(at_s, {Series("code", "feature", 3, "a"): {"rounds": rounds}})


def test_buckets_and_events_come_back_as_they_were(store: RedisHistory) -> None:
    event = Event(at_s=NOON_S, kind="publish", message="version 3", data={"candidate": 0.5})
    first = store.put([(TIERS[0], bucket(NOON_S)), (TIERS[1], bucket(NOON_S, 7.0))], [event])
    assert store.put([(TIERS[0], bucket(NOON_S, 2.0))], [event]) == first
    assert store.read(TIERS[0], NOON_S - 10, NOON_S) == [bucket(NOON_S, 2.0)]
    assert store.read(TIERS[1], NOON_S, NOON_S) == [bucket(NOON_S, 7.0)]
    assert store.read(TIERS[2], 0, 2 * NOON_S) == []
    assert store.events(NOON_S, NOON_S + 1, 10) == [event]


def test_the_newest_buckets_are_kept(store: RedisHistory) -> None:
    few = Tier("seconds", 5, 10, 0.25)
    for number in range(50):
        store.put([(few, bucket(NOON_S + 5 * number))], [])
    assert [one.at_s for one in store.read(few, 0, 2 * NOON_S)] == [NOON_S + 5 * number for number in range(40, 50)]


def test_bytes_are_bounded_and_counted_right(redis_server: RedisServer) -> None:
    store = RedisHistory(redis_server.url, "small", max_bytes=20_000)
    for number in range(300):
        rows = {
            Series(f"domain-{number}-{one}", "feature", one, "a"): {"rounds": number + one * 0.1} for one in range(20)
        }
        event = Event(at_s=NOON_S + number, kind="error", message=f"{number} " + "x" * 200)
        store.put([(tier, Bucket(NOON_S + number * tier.step_s, rows)) for tier in TIERS], [event])
        assert store.num_bytes() <= 20_000
    held = sum(
        len(member)
        for name in ("seconds", "minutes", "hours", "events")
        for member in redis_server.client.zrange(f"small:{name}", 0, -1)
    )
    assert 10_000 < held == store.num_bytes()
    assert store.read(TIERS[0], 0, 2 * NOON_S)[-1].at_s == NOON_S + 299 * 5
    store.close()


def test_a_redis_that_dies_and_one_that_is_emptied(redis_server: RedisServer, store: RedisHistory) -> None:
    clock = SetClock(NOON_S)
    history = History(store, clock_s=clock)
    query = HistoryQuery(from_s=NOON_S - 60, to_s=NOON_S + 3000)

    def count(rounds: int) -> None:
        for _ in range(rounds):
            history.add(Series("code", "feature", 1, "a"), {"rounds": 1.0})
        clock.now_s += 5

    def stored() -> float:
        (series,) = History(store, clock_s=clock).read(query).series
        return sum(filter(None, series.figures["rounds"]))

    count(3)
    assert history.flush()
    redis_server.kill()
    count(4)
    assert not history.flush()
    assert "cannot be reached" in history.read(query).message
    redis_server.ensure_running()
    assert history.flush()
    assert stored() == 7
    redis_server.client.flushall()
    count(5)
    assert history.flush() and history.flush()
    assert stored() == 12


def test_says_what_is_wrong_with_redis() -> None:
    store = RedisHistory("redis://127.0.0.1:1/0", "osd:history", max_bytes=1 << 20)
    with pytest.raises(OutcomeSinkError, match="cannot be reached"):
        store.read(TIERS[0], 0, 1)
    store.close()
