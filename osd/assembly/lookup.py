"""Makes the `suffix` lookup of an engine, and the feed of recent answers from which it learns."""

from __future__ import annotations

from osd.config.settings import Config
from osd.drafters.suffix.lookup import SuffixLookup
from osd.drafters.suffix.pool import AnswerPool
from osd.io.answers.feed import AnswerFeed
from osd.io.answers.stream import RedisAnswerStream


def make_lookup(config: Config) -> SuffixLookup | None:
    """A lookup that knows no answers yet; None if it is switched off."""
    if not config.drafter.suffix:
        return None
    return SuffixLookup(AnswerPool(config.drafter.suffix_bytes), config.engine.max_slots)


def open_answer_stream(config: Config, redis_url: str) -> RedisAnswerStream:
    """The stream of recent answers: as many as a lookup's pool holds, in half the bytes."""
    name = f"{config.outcomes.stream}:answers"
    return RedisAnswerStream(redis_url, name, max_bytes=config.drafter.suffix_bytes // 2)


def open_feed(config: Config, redis_url: str, target_id: str, lookup: SuffixLookup) -> AnswerFeed:
    """What adds the answers of all engines to a lookup's pool, once it is started."""
    return AnswerFeed(open_answer_stream(config, redis_url), target_id, lookup.pool.add)
