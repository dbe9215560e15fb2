"""The `usage` and `osd` fields of an answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from osd.records.query import QueryStats


def counts(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """The `usage` field while an answer is in progress."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def usage(prompt_tokens: int, stats: Sequence[QueryStats]) -> dict[str, Any]:
    """Token counts in OpenAI's shape. A prompt counts once, however many choices it has.

    `cached_tokens` are the prompt tokens that no choice had to prefill: earlier queries left them in the KV cache.
    """
    completion_tokens = sum(one.output_tokens for one in stats)
    read_tokens = sum(one.prompt_tokens - one.reused_tokens for one in stats)
    cached_tokens = max(prompt_tokens - read_tokens, 0)
    return {**counts(prompt_tokens, completion_tokens), "prompt_tokens_details": {"cached_tokens": cached_tokens}}


def told(stats: Sequence[QueryStats]) -> dict[str, Any]:
    """The `osd` field, and `metrics` where there is one choice and something was proposed for it.

    `metrics.speculative_decoding` has the names that vLLM gives these figures (`--per-request-spec-decode-metrics
    summary`), which benchmark clients such as AIPerf read. Its steps are the rounds in which tokens were proposed.
    """
    histogram = stats[0].accepted_histogram if len(stats) == 1 else ()
    if not any(histogram):
        return {"osd": osd_field(stats)}
    [one] = stats
    num_steps, num_accepted = sum(histogram), sum(count * times for count, times in enumerate(histogram))
    figures = {
        "num_spec_tokens": len(histogram) - 1,
        "num_spec_steps": num_steps,
        "num_draft_tokens": one.proposed,
        "num_accepted_draft_tokens": num_accepted,
        "mean_acceptance_length": 1.0 + num_accepted / num_steps,
        "draft_acceptance_rate": num_accepted / one.proposed,
        "acceptance_histogram": list(histogram),
    }
    return {"osd": osd_field(stats), "metrics": {"speculative_decoding": figures}}


def osd_field(stats: Sequence[QueryStats]) -> dict[str, Any]:
    """The `osd` field: speculation in this answer, summed over its choices; ratios with denominator 0 are null.

    acceptance rate = accepted / proposed; acceptance length = committed / rounds, which counts the recovered or bonus
    token of each round. `drafter_version` is the version that proposed last, in the choice that finished last;
    `drafters` are the names of those that proposed, such as `feature`, `suffix`, or `feature.sql` of a domain. `domain`
    is the one under which the queries were decoded and counted.
    """
    rounds = sum(one.rounds for one in stats)
    proposed = sum(one.proposed for one in stats)
    accepted = sum(one.accepted for one in stats)
    committed = sum(one.committed for one in stats)
    return {
        "rounds": rounds,
        "proposed": proposed,
        "accepted": accepted,
        "committed": committed,
        "acceptance_rate": accepted / proposed if proposed else None,
        "acceptance_length": committed / rounds if rounds else None,
        "drafter_version": stats[-1].drafter_version,
        "drafter_versions": list(dict.fromkeys(drafter.version for one in stats for drafter in one.drafters)),
        "drafters": list(dict.fromkeys(drafter.name for one in stats for drafter in one.drafters)),
        "domain": stats[-1].domain or None,
        "queue_ms": round(sum(one.queue_ms for one in stats), 3),
        "prefill_ms": round(sum(one.prefill_ms for one in stats), 3),
        "draft_ms": round(sum(one.draft_ms for one in stats), 3),
        "verify_ms": round(sum(one.verify_ms for one in stats), 3),
    }
