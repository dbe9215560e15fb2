"""The outcome stream against a real Redis: bounded, delivered at least once, and clear about what is wrong."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest

from osd.io.codec import encode
from osd.io.embedded_redis import EmbeddedRedis
from osd.io.outcome_stream import RedisOutcomeStream
from osd.io.recorder import Recorder
from osd.io.redis_client import RedisRefusedError
from osd.io.spill import SpillFile
from osd.records.errors import OsdError, OutcomeSinkError
from osd.records.outcome import Outcome
from tests.contract.conftest import PATIENCE_S, RedisServer
from tests.kit.outcome_samples import sample_outcome
from tests.kit.waiting import wait_for

pytestmark = pytest.mark.redis

OpenStream = Callable[..., RedisOutcomeStream]


def _put(stream: RedisOutcomeStream, *names: str) -> None:
    for name in names:
        stream.put(sample_outcome(name))


def _names(delivered: list[tuple[str, Outcome]]) -> list[str]:
    return [outcome.request_id for _, outcome in delivered]


def _read(stream: RedisOutcomeStream, max_count: int = 1000) -> list[str]:
    return _names(stream.read(max_count, 0))


def _read_all(stream: RedisOutcomeStream) -> list[str]:
    names: list[str] = []
    while more := _read(stream):
        names += more
    return names


# Delivery


def test_outcomes_are_delivered_whole_and_in_order(open_stream: OpenStream) -> None:
    stream = open_stream()
    _put(stream, "a", "b", "c")  # before there is a reader
    assert _names(stream.read(2, 0)) == ["a", "b"]
    ((position, outcome),) = stream.read(2, 0)
    assert outcome == sample_outcome("c")
    assert position.count("-") == 1
    assert stream.read(2, 0) == []


def test_a_waiting_reader_is_woken(open_stream: OpenStream) -> None:
    reader, writer = open_stream(), open_stream()
    assert _read(reader) == []
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(reader.read, 1, 60_000)
        _put(writer, "a")
        assert _names(waiting.result(PATIENCE_S)) == ["a"]


def test_waiting_ends(open_stream: OpenStream) -> None:
    started_s = time.monotonic()
    assert open_stream().read(1, 50) == []
    assert 0.05 <= time.monotonic() - started_s < PATIENCE_S


def test_a_reader_that_restarts_gets_what_it_had_not_acknowledged_first(open_stream: OpenStream) -> None:
    former = open_stream()
    _put(former, "a", "b", "c", "d")
    first, *_ = former.read(3, 0)
    former.ack([first[0]])
    reader = open_stream()
    assert _read(reader, 1) == ["b"]
    assert _read(reader, 1) == ["c"]
    assert _read(reader, 1) == ["d"]
    assert _read(reader) == []


_READER = """
import sys, time
from osd.io.outcome_stream import RedisOutcomeStream
stream = RedisOutcomeStream(sys.argv[1], "outcomes", max_entries=9, max_bytes=1 << 20, consumer="victim")
print(len(stream.read(2, 0)), flush=True)
time.sleep(600)
"""


def test_what_a_killed_reader_held_goes_to_another(redis_server: RedisServer, open_stream: OpenStream) -> None:
    _put(open_stream(), "a", "b", "c")
    with subprocess.Popen([sys.executable, "-c", _READER, redis_server.url], stdout=subprocess.PIPE) as victim:
        assert victim.stdout is not None
        assert victim.stdout.readline() == b"2\n"
        patient, heir = open_stream(consumer="patient"), open_stream(consumer="heir", dead_after_s=0.001)
        assert _read(patient) == ["c"]  # the victim may be alive for all it knows
        victim.kill()
    assert _read(heir)[:2] == ["a", "b"]


def test_one_object_delivers_nothing_twice_though_it_claims(open_stream: OpenStream) -> None:
    stream = open_stream(dead_after_s=0.0, claim_interval_s=0.0)
    _put(stream, "a", "b")
    assert _read(stream) == ["a", "b"]
    assert _read_all(stream) == []
    _put(stream, "c")
    assert _read_all(stream) == ["c"]


def test_entries_that_are_no_outcomes_are_skipped_for_good(
    redis_server: RedisServer, open_stream: OpenStream, caplog: pytest.LogCaptureFixture
) -> None:
    stream = open_stream()
    _put(stream, "a")
    redis_server.client.xadd("outcomes", {"outcome": b"garbage"})
    redis_server.client.xadd("outcomes", {"hello": b"world"})
    stream.put(msgspec.structs.replace(sample_outcome("newer"), schema_version=99))
    _put(stream, "b")
    delivered = stream.read(10, 0)
    assert _names(delivered) == ["a", "b"]
    assert caplog.text.count("skipping entry") == 3 and "schema version 99" in caplog.text
    stream.ack([position for position, _ in delivered])
    assert redis_server.client.xpending("outcomes", "osd-trainer")["pending"] == 0


def test_what_was_trimmed_while_unacknowledged_is_passed_over(
    redis_server: RedisServer, open_stream: OpenStream
) -> None:
    former = open_stream()
    _put(former, "a", "b", "c")
    assert _read(former) == ["a", "b", "c"]
    redis_server.client.xtrim("outcomes", maxlen=1, approximate=False)
    heir = open_stream(consumer="heir", dead_after_s=0.0)
    assert _read_all(heir) == ["c"]
    reborn = open_stream(consumer="heir")
    assert _read_all(reborn) == ["c"]
    assert redis_server.client.xpending("outcomes", "osd-trainer")["pending"] == 1


# Bounds


def _kept(server: RedisServer) -> list[bytes]:
    entries: Any = server.client.xrange("outcomes")
    return [fields[b"outcome"] for _, fields in entries]


def test_the_number_of_entries_is_bounded_and_the_oldest_go(redis_server: RedisServer, open_stream: OpenStream) -> None:
    stream = open_stream(max_entries=3)
    for number in range(10):
        _put(stream, str(number))
        assert redis_server.client.xlen("outcomes") == min(number + 1, 3)
    assert _read(stream) == ["7", "8", "9"]


def test_bytes_are_bounded_and_used_to_the_full(redis_server: RedisServer, open_stream: OpenStream) -> None:
    outcomes = [sample_outcome(str(number), outputs=1 + number % 7) for number in range(40)]
    stream = open_stream(max_bytes=3000)
    for number, outcome in enumerate(outcomes):
        if number == 20:
            stream = open_stream(max_bytes=3000)  # another writer, or this one after a restart
        stream.put(outcome)
        kept = _kept(redis_server)
        assert sum(map(len, kept)) <= 3000
        earlier = number - len(kept)
        assert kept == [encode(each) for each in outcomes[earlier + 1 : number + 1]]
        assert earlier < 0 or sum(map(len, kept)) + len(encode(outcomes[earlier])) > 3000


def test_the_bounds_hold_for_several_writers(redis_server: RedisServer, open_stream: OpenStream) -> None:
    def write(writer: int) -> None:
        stream = open_stream(max_bytes=3000)
        _put(stream, *(f"{writer}-{number}" for number in range(25)))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    kept = _kept(redis_server)
    size_bytes = len(encode(sample_outcome("0-00")))
    assert 3000 - size_bytes < sum(map(len, kept)) <= 3000


@pytest.mark.parametrize("disturbance", ["trimmed", "foreign", "removed"])
def test_the_bounds_hold_whatever_others_do_to_the_stream(
    redis_server: RedisServer, open_stream: OpenStream, disturbance: str
) -> None:
    stream = open_stream(max_bytes=3000)
    _put(stream, *map(str, range(20)))
    if disturbance == "trimmed":
        redis_server.client.xtrim("outcomes", maxlen=1, approximate=False)
    elif disturbance == "foreign":
        redis_server.client.xadd("outcomes", {"hello": "world"})
    else:
        redis_server.client.delete("outcomes")
    _put(stream, *map(str, range(20, 60)))
    kept = _kept(redis_server)
    assert 3000 - len(kept[0]) < sum(map(len, kept)) <= 3000


def test_an_outcome_larger_than_the_stream_is_said_to_be_so(open_stream: OpenStream) -> None:
    stream = open_stream(max_bytes=200)
    with pytest.raises(ValueError, match=r"exceeds outcomes.max_bytes = 200"):
        _put(stream, "a")


def test_repeating_a_put_adds_nothing(open_stream: OpenStream) -> None:
    stream = open_stream()
    _put(stream, "a", "a", "b")
    _put(open_stream(), "a", "b")
    assert _read(stream) == ["a", "b"]


def test_lag_counts_what_no_reader_was_given(redis_server: RedisServer, open_stream: OpenStream) -> None:
    stream = open_stream(max_entries=5)
    assert stream.lag() == 0
    _put(stream, "a", "b", "c")
    assert stream.lag() == 3  # nobody has read yet
    assert _read(stream, 1) == ["a"]
    assert stream.lag() == 2
    redis_server.client.xadd("outcomes", {"hello": "world"})
    assert stream.lag() == 2
    _put(stream, *"defghi")
    assert stream.lag() == 5  # some were trimmed unread
    assert _read_all(stream) == list("efghi")
    assert stream.lag() == 0


# Faults


def test_entries_and_reading_positions_survive_a_restart_of_redis(
    redis_server: RedisServer, open_stream: OpenStream
) -> None:
    stream = open_stream()
    _put(stream, "a", "b", "c")
    delivered = stream.read(2, 0)
    stream.ack([delivered[0][0]])
    redis_server.kill()
    redis_server.ensure_running()
    _put(stream, "d")
    assert _read_all(stream) == ["c", "d"]
    assert _read_all(open_stream()) == ["b", "c", "d"]


def test_a_redis_that_lost_its_data_is_read_on(redis_server: RedisServer, open_stream: OpenStream) -> None:
    stream = open_stream()
    _put(stream, "a")
    assert _read(stream) == ["a"]
    redis_server.client.flushall()
    assert _read(stream) == []
    redis_server.client.flushall()
    _put(stream, "b")
    assert _read(stream) == ["b"]


def test_a_wrong_password_is_said_at_once(redis_server: RedisServer, open_stream: OpenStream) -> None:
    stream = open_stream(url=redis_server.url.replace("unix://:", "unix://:hunter2"))
    with pytest.raises(RedisRefusedError, match="refuses the password; correct") as refusal:
        stream.check()
    with pytest.raises(OutcomeSinkError, match="refuses the password"):
        _put(stream, "a")
    assert "hunter2" not in str(refusal.value)
    assert refusal.value.__suppress_context__  # so that no traceback shows the client's own error
    open_stream().check()


def test_no_password_where_one_is_needed_is_said(redis_server: RedisServer, open_stream: OpenStream) -> None:
    path = redis_server.url.partition("@")[2]
    with pytest.raises(RedisRefusedError, match="password"):
        open_stream(url=f"unix://{path}").check()


def test_an_unreachable_redis_is_said_quickly(open_stream: OpenStream) -> None:
    stream = open_stream(url="redis://:hunter2@127.0.0.1:1/0")  # nothing listens on port 1
    started_s = time.monotonic()
    for use in (stream.check, lambda: _put(stream, "a"), lambda: stream.read(1, 100), lambda: stream.ack(["1-0"])):
        with pytest.raises(OutcomeSinkError, match=r"Redis at 127.0.0.1:1 cannot be reached; start it") as away:
            use()
        assert not isinstance(away.value, RedisRefusedError)
    assert stream.lag() is None
    assert time.monotonic() - started_s < PATIENCE_S


@pytest.mark.parametrize("url", ["http://:hunter2@localhost", "redis://:hun/ter2@localhost:1", "hunter2"])
def test_a_malformed_url_is_explained_without_its_password(open_stream: OpenStream, url: str) -> None:
    with pytest.raises(OsdError, match="URL is malformed; give redis://") as error:
        open_stream(url=url)
    assert "hun" not in str(error.value)


def test_a_full_redis_refuses_and_takes_again(tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path, max_memory_bytes=3 << 20)
    server.start()
    stream = RedisOutcomeStream(server.url, "outcomes", max_entries=10_000, max_bytes=1 << 30)
    bounded = RedisOutcomeStream(server.url, "outcomes", max_entries=5, max_bytes=1 << 30)
    try:
        with pytest.raises(OutcomeSinkError, match="is out of memory; raise its maxmemory, or lower outcomes"):
            for number in range(100):
                stream.put(sample_outcome(str(number), outputs=200, hidden_size=256))
        bounded.put(sample_outcome("fits"))  # room is made before it is asked for
        assert _names(bounded.read(10, 0))[-1] == "fits"
    finally:
        stream.close()
        bounded.close()
        server.stop()


def test_a_stream_name_in_other_use_is_refused(redis_server: RedisServer, open_stream: OpenStream) -> None:
    redis_server.client.set("outcomes", "a string")
    with pytest.raises(RedisRefusedError, match=r"choose another outcomes.stream"):
        _put(open_stream(), "a")


def test_a_put_that_timed_out_is_repeated_without_a_duplicate(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, open_stream: OpenStream
) -> None:
    monkeypatch.setattr("osd.io.redis_client.COMMAND_TIMEOUT_S", 1.0)
    stream = open_stream()
    _put(stream, "a")
    redis_server.freeze()
    try:
        with pytest.raises(OutcomeSinkError, match="does not answer in time"):
            _put(stream, "b")
        assert stream.lag() is None
    finally:
        redis_server.thaw()
    _put(stream, "b")  # the frozen server had it in its socket all along
    _put(stream, "c")
    assert _read_all(stream) == ["a", "b", "c"]


def test_nothing_is_lost_or_doubled_while_redis_comes_and_goes(
    redis_server: RedisServer, open_stream: OpenStream, tmp_path: Path
) -> None:
    spill = SpillFile(tmp_path / "outcomes.spill", 1 << 20)
    recorder = Recorder(open_stream(), spill, queue_entries=64, first_retry_s=0.01, longest_retry_s=0.05)
    names = [f"{number:03d}" for number in range(90)]
    writing, killed = threading.Event(), threading.Event()

    def write() -> None:
        for number, name in enumerate(names):
            recorder.record(lambda name=name: sample_outcome(name))  # type: ignore[misc]
            if number == 20:
                writing.set()
            if number == 40:
                assert killed.wait(PATIENCE_S)
            assert recorder.flush(PATIENCE_S)

    writer = threading.Thread(target=write)
    writer.start()
    assert writing.wait(PATIENCE_S)
    redis_server.kill()  # in the middle of the writing
    killed.set()
    wait_for(lambda: recorder.counters()["outcomes_spilled"] >= 5)
    redis_server.ensure_running()
    writer.join(PATIENCE_S)
    wait_for(lambda: recorder.counters()["outcomes_recorded"] == len(names))
    assert recorder.counters()["outcomes_dropped"] == 0
    assert recorder.counters()["outcomes_replayed"] >= 5
    recorder.close()
    assert _read_all(open_stream()) == names
