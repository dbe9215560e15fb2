"""A Redis that would lose the stream is refused or warned of, and a stream belongs to one service."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from osd.io.codec import encode
from osd.io.guards.redis_health import check_redis_keeps, clock_offset_s
from osd.io.guards.stream_owner import StreamOwner
from osd.io.outcome_stream import RedisOutcomeStream
from osd.records.errors import OsdError
from tests.contract.conftest import RedisServer
from tests.kit.outcome_samples import sample_outcome

pytestmark = pytest.mark.redis


def test_the_embedded_one_is_fit(redis_server: RedisServer) -> None:
    assert check_redis_keeps(redis_server.url) == []


@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-random"])
def test_one_that_evicts_any_key_is_refused(redis_server: RedisServer, policy: str) -> None:
    redis_server.client.config_set("maxmemory-policy", policy)
    with pytest.raises(OsdError, match=rf"maxmemory-policy {policy}.*set maxmemory-policy noeviction"):
        check_redis_keeps(redis_server.url)


def test_one_that_evicts_what_expires_is_warned_of(redis_server: RedisServer) -> None:
    redis_server.client.config_set("maxmemory-policy", "volatile-lru")
    [warning] = check_redis_keeps(redis_server.url)
    assert "the distiller's lease; set maxmemory-policy noeviction" in warning


def test_one_that_keeps_nothing_on_disk_is_warned_of(redis_server: RedisServer) -> None:
    redis_server.client.config_set("appendonly", "no")
    redis_server.client.config_set("save", "")
    [warning] = check_redis_keeps(redis_server.url)
    assert "set appendonly yes" in warning
    redis_server.client.config_set("save", "60 1")
    assert check_redis_keeps(redis_server.url) == []


def test_a_stream_belongs_to_one_service(redis_server: RedisServer) -> None:
    ours, again, theirs = (
        StreamOwner(redis_server.url, "outcomes", service, where)
        for service, where in (("aa", "here"), ("aa", "here"), ("a", "10.0.0.7"))
    )
    ours.claim()
    again.claim()  # it was restarted
    with pytest.raises(OsdError, match=r"'outcomes' belongs to another osd service \(here\); give this one its own"):
        theirs.claim()
    assert 50 < int(redis_server.client.ttl("outcomes:owner")) <= 60
    redis_server.client.delete("outcomes:owner")  # a minute after it stopped
    theirs.claim()
    with pytest.raises(OsdError, match=r"another osd service \(10.0.0.7\)"):
        ours.claim()
    for owner in (ours, again, theirs):
        owner.close()


def test_clocks_are_compared(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    assert abs(clock_offset_s(redis_server.url)) < 2.0
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 90.0)
    assert clock_offset_s(redis_server.url) == pytest.approx(90.0, abs=2.0)


def test_what_was_ever_written_is_known_whatever_was_dropped(
    redis_server: RedisServer, open_stream: Callable[..., RedisOutcomeStream]
) -> None:
    owner = StreamOwner(redis_server.url, "outcomes", "a", "here")
    assert owner.total_bytes() == 0
    stream = open_stream(max_entries=2)
    sizes = []
    for number in range(5):
        outcome = sample_outcome(request_id=f"q{number}")
        sizes.append(len(encode(outcome)))
        stream.put(outcome)
        assert owner.total_bytes() == sum(sizes)
    owner.close()
