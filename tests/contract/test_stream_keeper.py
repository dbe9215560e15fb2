"""The claim of the stream over restarts and updates, and against another service; the share that is ordered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from actors.supervisor.stream_keeper import StreamKeeper, claim_stream
from osd.config.settings import Config, load_config
from osd.io.outcome_stream import RedisOutcomeStream
from osd.records.errors import OsdError
from osd.records.events import Event
from tests.contract.conftest import RedisServer
from tests.kit.outcome_samples import sample_outcome
from tests.kit.waiting import wait_for

pytestmark = pytest.mark.redis


def _config(state: str = "/a", **outcomes: Any) -> Config:
    return load_config(flags={"state_dir": Path(state), "outcomes": {"stream": "outcomes", **outcomes}})


def test_two_clusters_on_one_stream_are_refused(redis_server: RedisServer) -> None:
    assert claim_stream(_config(), redis_server.url, "10.0.0.1:6379") == []
    assert claim_stream(_config("/b"), redis_server.url, "10.0.0.1:6379") == []  # an update, from another machine
    with pytest.raises(OsdError, match=r"another osd service \(Ray cluster 10.0.0.1:6379\)"):
        claim_stream(_config(), redis_server.url, "10.0.0.2:6379")
    with pytest.raises(OsdError, match="give this one its own outcomes.stream"):
        claim_stream(_config(), redis_server.url)


def test_a_service_that_comes_later_is_told_once(redis_server: RedisServer) -> None:
    claim_stream(_config(), redis_server.url, "10.0.0.1:6379")
    events: list[Event] = []
    keeper = StreamKeeper(_config(), redis_server.url, events.append, "10.0.0.2:6379", interval_s=0.01)
    try:
        wait_for(lambda: events, "the event")
        redis_server.client.delete("outcomes:owner")
        wait_for(lambda: redis_server.client.get("outcomes:owner"), "the claim")
        assert [event.kind for event in events] == ["error"] and "10.0.0.1" in events[0].message
    finally:
        keeper.close()


def test_what_is_written_beyond_the_limit_lowers_the_share(redis_server: RedisServer) -> None:
    keeper = StreamKeeper(_config(max_bytes_per_s=1 << 16), redis_server.url, lambda event: None, interval_s=0.05)
    stream = RedisOutcomeStream(redis_server.url, "outcomes", max_entries=1000, max_bytes=32 << 20)
    number = 0

    def lowered() -> bool:
        nonlocal number
        number += 1
        stream.put(sample_outcome(f"q{number}", outputs=64, hidden_size=2048))
        return keeper.status().record_share < 0.5

    try:
        assert keeper.status().record_share == 1.0
        wait_for(lowered, "the share to fall")
        assert keeper.status().bytes_per_s > 1 << 16
        wait_for(lambda: keeper.status().record_share == 1.0, "it to rise when nothing is written")
    finally:
        keeper.close()
        stream.close()
