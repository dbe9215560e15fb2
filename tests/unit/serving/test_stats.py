"""The token counts of an answer."""

from __future__ import annotations

from osd.records.query import QueryStats
from serving.wire.stats import told, usage


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


def test_speculation_by_the_names_that_benchmark_clients_read() -> None:
    stats = QueryStats(rounds=6, proposed=20, accepted=9, committed=15, accepted_histogram=(1, 1, 1, 2, 0))
    told_of = told([stats])
    assert told_of["metrics"]["speculative_decoding"] == {
        "num_spec_tokens": 4,
        "num_spec_steps": 5,
        "num_draft_tokens": 20,
        "num_accepted_draft_tokens": 9,
        "mean_acceptance_length": 2.8,
        "draft_acceptance_rate": 0.45,
        "acceptance_histogram": [1, 1, 1, 2, 0],
    }
    assert told_of["osd"]["rounds"] == 6
    assert "metrics" not in told([QueryStats(rounds=6, committed=6)])  # plain rounds only
    assert "metrics" not in told([stats, stats])  # of which choice?
