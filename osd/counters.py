"""Monotone counters of the engine. Ratios are taken when read, never stored.

acceptance rate = accepted / proposed; acceptance length = committed / rounds (it counts the recovered or bonus token).
"""

from __future__ import annotations

from collections import defaultdict

from osd.types import FinishReason, QueryStats

NAMES = (
    "queries_total",
    "queries_cancelled_total",
    "queries_failed_total",
    "prompt_tokens_total",
    "reused_tokens_total",
    "output_tokens_total",
    "rounds_total",
    "plain_rounds_total",
    "proposed_total",
    "accepted_total",
    "committed_total",
    "draft_seconds_total",
    "verify_seconds_total",
    "prefill_seconds_total",
    "swaps_total",
    "roll_backs_total",
)


class Counters:
    """All counts of one engine since it started."""

    def __init__(self) -> None:
        self.values: dict[str, float] = dict.fromkeys(NAMES, 0.0)
        self.by_version: dict[int, dict[str, int]] = defaultdict(
            lambda: {"rounds": 0, "proposed": 0, "accepted": 0, "committed": 0}
        )

    def add(self, name: str, amount: float = 1.0) -> None:
        """Count; the name must be one of NAMES."""
        self.values[name] += amount

    def add_times(self, draft_ms: float, verify_ms: float) -> None:
        """What one round of all rows took."""
        self.add("draft_seconds_total", draft_ms / 1e3)
        self.add("verify_seconds_total", verify_ms / 1e3)

    def add_round(self, version: int, proposed: int, accepted: int, committed: int) -> None:
        """One row's round. One that proposed nothing is a plain round too: it counts as a round, of no version."""
        values = self.values
        values["rounds_total"] += 1
        values["committed_total"] += committed
        if not proposed:
            values["plain_rounds_total"] += 1
        else:
            values["proposed_total"] += proposed
            values["accepted_total"] += accepted
            counts = self.by_version[version]
            counts["rounds"] += 1
            counts["proposed"] += proposed
            counts["accepted"] += accepted
            counts["committed"] += committed

    def add_query(self, stats: QueryStats, reason: FinishReason) -> None:
        """One finished query."""
        self.add("queries_total")
        if reason == "cancelled":
            self.add("queries_cancelled_total")
        if reason == "error":
            self.add("queries_failed_total")
        self.add("prompt_tokens_total", stats.prompt_tokens)
        self.add("reused_tokens_total", stats.reused_tokens)
        self.add("output_tokens_total", stats.output_tokens)
        self.add("prefill_seconds_total", stats.prefill_ms / 1e3)
