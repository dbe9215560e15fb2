"""At most one distiller of a stream trains: a second one waits, takes over, and tells a deposed one by its fence."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from osd.io.guards.lease import Lease
from osd.records.errors import OutcomeSinkError
from tests.contract.conftest import RedisServer
from tests.kit.clock import Clock
from tests.kit.waiting import wait_for

pytestmark = pytest.mark.redis


@pytest.fixture
def clock() -> Clock:
    """A holder's own clock; Redis has another."""
    return Clock()


@pytest.fixture
def open_lease(redis_server: RedisServer, clock: Clock) -> Iterator[Callable[..., Lease]]:
    leases = []

    def open_one(where: str, on_deposed: Callable[[], None] = lambda: None, ttl_s: float = 15.0) -> Lease:
        lease = Lease(redis_server.url, "outcomes", where, on_deposed=on_deposed, ttl_s=ttl_s, clock=clock)
        leases.append(lease)
        return lease

    yield open_one
    for lease in leases:
        lease.close()


def _expire(server: RedisServer) -> None:
    """As if the holder had been silent for long."""
    server.client.delete("outcomes:distiller")


def test_the_second_one_waits_and_takes_over_when_the_first_is_gone(open_lease: Callable[..., Lease]) -> None:
    first, second = open_lease("node 1"), open_lease("node 2")
    assert first.renew() and first.is_held() and first.fence == 1
    assert not second.renew() and not second.is_held()
    assert second.problem == "another distiller (node 1) trains; this one takes over when that one is gone"
    assert first.renew() and first.fence == 1
    first.close()
    assert not first.is_held()
    assert second.renew() and second.fence == 2


def test_a_deposed_one_learns_of_it_and_stays_so(open_lease: Callable[..., Lease], redis_server: RedisServer) -> None:
    deposed: list[str] = []
    first = open_lease("node 1", lambda: deposed.append("first"))
    second = open_lease("node 2", lambda: deposed.append("second"))
    assert first.renew()
    _expire(redis_server)
    assert second.renew() and second.fence == 2
    assert not first.renew() and deposed == ["first"] and not first.is_held()
    second.close()
    assert not first.renew() and not first.is_held(), "what it knows is outdated, though the lease is free again"
    assert deposed == ["first"]
    first.begin_again()
    assert first.renew() and first.is_held() and first.fence == 3


def test_who_overslept_without_another_one_goes_on(
    open_lease: Callable[..., Lease], redis_server: RedisServer, clock: Clock
) -> None:
    lease = open_lease("node 1")
    assert lease.renew()
    clock.now_s = 11.9
    assert lease.is_held()
    clock.now_s = 12.1  # before another one could have it
    assert not lease.is_held()
    _expire(redis_server)
    assert lease.renew() and lease.is_held() and lease.fence == 1


def test_while_redis_is_away_it_is_held_for_its_time_only(
    open_lease: Callable[..., Lease], redis_server: RedisServer, clock: Clock
) -> None:
    lease = open_lease("node 1")
    assert lease.renew()
    redis_server.kill()
    with pytest.raises(OutcomeSinkError, match="cannot be reached"):
        lease.renew()
    assert lease.is_held()
    clock.now_s = 12.1
    assert not lease.is_held()


def test_its_thread_takes_it_over_by_itself(open_lease: Callable[..., Lease], redis_server: RedisServer) -> None:
    first, second = open_lease("node 1"), open_lease("node 2", ttl_s=0.2)
    assert first.renew()
    second.start()
    wait_for(lambda: "node 1" in second.problem, "the second one to be told")
    _expire(redis_server)
    assert second.wait(threading.Event())
    assert second.fence == 2
