"""Makes the router of an engine, and the stream and the feed of labelled prompts from which it learns."""

from __future__ import annotations

from osd.config.settings import Config
from osd.drafters.router import DomainRouter, looked_at
from osd.io.answers.feed import AnswerFeed
from osd.io.answers.stream import RedisAnswerStream
from osd.records.outcome import Outcome

_STREAM_BYTES = 2 << 20
"""Size of the stream of labelled prompts, from which a router learns after a restart. A megabyte holds about a thousand
prompts of a hundred tokens."""


def make_router(config: Config) -> DomainRouter | None:
    """A router that knows no domain yet; None if routing is switched off, or domains have no drafters of their own."""
    wanted = config.drafter.route and config.drafter.max_domains and config.outcomes.enabled
    return DomainRouter() if wanted else None


def open_prompt_stream(config: Config, redis_url: str) -> RedisAnswerStream:
    """The stream of labelled prompts. The router's own guesses are not among them, or it would learn from itself."""
    return RedisAnswerStream(
        redis_url, f"{config.outcomes.stream}:prompts", max_bytes=_STREAM_BYTES, tokens_of=_labelled_prompt
    )


def open_prompt_feed(config: Config, redis_url: str, target_id: str, router: DomainRouter) -> AnswerFeed:
    """A feed that teaches a router the labelled prompts of all engines; the caller starts it."""
    return AnswerFeed(open_prompt_stream(config, redis_url), target_id, router.learn)


def _labelled_prompt(outcome: Outcome) -> tuple[int, ...]:
    return looked_at(outcome.prompt_ids) if outcome.domain_from == "named" else ()
