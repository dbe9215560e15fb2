"""The token counts of an answer."""

from __future__ import annotations

from osd.records.query import QueryStats
from serving.wire.stats import usage


def test_what_was_read_before_is_counted() -> None:
    counted = usage(30, [QueryStats(prompt_tokens=30, reused_tokens=22, output_tokens=5)])
    assert counted == {
        "prompt_tokens": 30,
        "completion_tokens": 5,
        "total_tokens": 35,
        "prompt_tokens_details": {"cached_tokens": 22},
    }


def test_choices_that_share_a_prompt_have_not_all_read_it() -> None:
    """The first one reads it; that the second need not is no news to the client, who pays for a prompt once."""
    first, second = QueryStats(prompt_tokens=30, reused_tokens=10), QueryStats(prompt_tokens=30, reused_tokens=29)
    assert usage(30, [first, second])["prompt_tokens_details"] == {"cached_tokens": 9}
    unlucky = [QueryStats(prompt_tokens=30, reused_tokens=0)] * 2
    assert usage(30, unlucky)["prompt_tokens_details"] == {"cached_tokens": 0}
