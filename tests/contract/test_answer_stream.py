"""The answer stream against a real Redis: bounded, read by every engine from the start, and sound after a restart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import msgspec
import pytest

from osd.assembly.lookup import open_feed
from osd.assembly.recorder import open_recorder
from osd.assembly.routing import make_router, open_prompt_feed
from osd.config.settings import Config, load_config
from osd.drafters.suffix.lookup import SuffixLookup
from osd.drafters.suffix.pool import AnswerPool
from osd.io.answers.stream import FROM_START, Answer, RedisAnswerStream
from osd.records.errors import OutcomeSinkError
from osd.records.outcome import Outcome
from osd.records.proposal import RowText
from tests.contract.conftest import RedisServer
from tests.kit.outcome_samples import sample_outcome
from tests.kit.waiting import PATIENCE_S, wait_for

pytestmark = pytest.mark.redis


@pytest.fixture
def stream(redis_server: RedisServer) -> Iterator[RedisAnswerStream]:
    stream = RedisAnswerStream(redis_server.url, "answers", max_bytes=1 << 16)
    yield stream
    stream.close()


def _outcome(token_ids: Sequence[int], *, domain: str = "sql", target_id: str = "tiny", name: str = "r") -> Outcome:
    sample = sample_outcome(name)
    return msgspec.structs.replace(sample, output_ids=tuple(token_ids), domain=domain, target_id=target_id)


def _read_all(stream: RedisAnswerStream) -> list[Answer]:
    return stream.read(FROM_START, 10_000, 0).answers


def test_every_reader_gets_every_answer_in_order(stream: RedisAnswerStream) -> None:
    stream.put(_outcome([1, 2, 49_151], domain="müll"))
    stream.put(_outcome([3], target_id="other"))
    expected = [Answer("tiny", "müll", (1, 2, 49_151)), Answer("other", "sql", (3,))]
    assert _read_all(stream) == expected == _read_all(stream)
    position, [first] = stream.read(FROM_START, 1, 0)
    assert first == expected[0]
    position, rest = stream.read(position, 5, 0)
    assert rest == expected[1:]
    assert stream.read(position, 5, 10) == (position, [])


def test_the_oldest_are_dropped_beyond_the_bound(redis_server: RedisServer) -> None:
    """Redis itself takes little more than the bound, and most of it is used."""
    stream = RedisAnswerStream(redis_server.url, "answers", max_bytes=1 << 18)
    for number in range(1000):
        stream.put(_outcome([number] * 200))
    kept = [answer.token_ids[0] for answer in _read_all(stream)]
    assert kept == list(range(1000 - len(kept), 1000))
    assert 0.9 * (1 << 18) < len(kept) * (200 * 4 + 140) <= 1 << 18
    assert int(redis_server.client.memory_usage("answers", samples=0) or 0) < 1.2 * (1 << 18)


def test_of_an_answer_beyond_the_bound_the_end_is_kept(redis_server: RedisServer) -> None:
    stream = RedisAnswerStream(redis_server.url, "answers", max_bytes=1 << 12)
    stream.put(_outcome(range(10_000)))
    [answer] = _read_all(stream)
    assert answer.token_ids == tuple(range(10_000 - len(answer.token_ids), 10_000)) and len(answer.token_ids) > 900


def test_what_somebody_else_wrote_is_skipped(stream: RedisAnswerStream, redis_server: RedisServer) -> None:
    redis_server.client.xadd("answers", {"end": 0, "size": 0, "answer": b"\xc1"})
    stream.put(_outcome([7]))
    assert [answer.token_ids for answer in _read_all(stream)] == [(7,)]


def test_a_redis_that_is_gone_is_said(stream: RedisAnswerStream, redis_server: RedisServer) -> None:
    redis_server.stop()
    with pytest.raises(OutcomeSinkError, match="cannot be reached"):
        stream.put(_outcome([1]))
    with pytest.raises(OutcomeSinkError, match="cannot be reached"):
        stream.read(FROM_START, 1, 0)


def test_what_one_engine_answered_is_known_to_another_and_after_a_restart(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """From the recorder, which is given no outcome of a query that opted out, to what a lookup offers."""
    config = Config(state_dir=tmp_path)
    recorder = open_recorder(config, redis_server.url)
    recorder.record(lambda: _outcome([5, 6, 7, 8], name="a"))
    recorder.record(lambda: _outcome([1, 2, 3], target_id="another", name="b"))
    recorder.close()
    for _ in range(2):  # the second is an engine that was started anew
        lookup = SuffixLookup(AnswerPool(1 << 16), 1)
        feed = open_feed(config, redis_server.url, "tiny", lookup)
        feed.start()
        try:
            wait_for(lambda lookup=lookup: lookup.pool.num_tokens)  # type: ignore[misc]
        finally:
            feed.stop()
        [offer] = lookup.offers([RowText("sql", (9, 5), [6])], 2)
        assert offer.token_ids == (7, 8)
        assert lookup.pool.num_tokens == 5


def test_nothing_is_kept_where_the_lookup_is_switched_off(redis_server: RedisServer, tmp_path: Path) -> None:
    config = Config(state_dir=tmp_path)
    config = config.model_copy(update={"drafter": config.drafter.model_copy(update={"suffix": False})})
    recorder = open_recorder(config, redis_server.url)
    recorder.record(lambda: _outcome([5, 6, 7, 8]))
    recorder.close()
    assert recorder.counters()["outcomes_recorded"] == 1
    assert not redis_server.client.exists("osd:outcomes:answers")


def _asked(prompt_ids: Sequence[int], domain: str, domain_from: str, name: str) -> Outcome:
    changed = {"prompt_ids": tuple(prompt_ids), "domain": domain, "domain_from": domain_from}
    return msgspec.structs.replace(sample_outcome(name), **changed)


def test_labelled_prompts_teach_every_router_also_after_a_restart(redis_server: RedisServer, tmp_path: Path) -> None:
    """Only what somebody named: prompts that a router guessed, or that nobody named, teach it nothing."""
    config = load_config(flags={"state_dir": tmp_path, "drafter": {"max_domains": 2}})
    recorder = open_recorder(config, redis_server.url)
    for number in range(40):
        recorder.record(partial(_asked, (1, 2, 10 + number % 5), "sql", "named", f"s{number}"))
        recorder.record(partial(_asked, (1, 2, 50 + number % 5), "mail", "named", f"m{number}"))
        recorder.record(partial(_asked, (1, 2, 90 + number % 5), "sql", "router", f"r{number}"))
        recorder.record(partial(_asked, (1, 2, 90 + number % 5), "default", "none", f"n{number}"))
        assert recorder.flush(PATIENCE_S)
    recorder.close()
    for _ in range(2):  # the second is an engine that was started anew
        router = make_router(config)
        assert router is not None
        feed = open_prompt_feed(config, redis_server.url, "tiny", router)
        feed.start()
        try:
            wait_for(lambda router=router: sum(router.num_prompts.values()) == 80)  # type: ignore[misc]
        finally:
            feed.stop()
        assert (router.route((1, 2, 13)), router.route((1, 2, 53)), router.route((1, 2, 93))) == ("sql", "mail", None)


def test_no_prompt_is_kept_without_drafters_of_domains(redis_server: RedisServer, tmp_path: Path) -> None:
    for drafter in ({"max_domains": 0}, {"max_domains": 2, "route": False}):
        config = load_config(flags={"state_dir": tmp_path, "drafter": drafter})
        assert make_router(config) is None
        recorder = open_recorder(config, redis_server.url)
        recorder.record(lambda: _asked((1, 2), "sql", "named", "s"))
        recorder.close()
    assert not redis_server.client.exists("osd:outcomes:prompts")
