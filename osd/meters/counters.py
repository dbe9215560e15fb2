"""Monotone counters of the engine, with their help texts. Ratios are computed when read, never stored.

acceptance rate = accepted / proposed; acceptance length = committed / rounds (it counts the recovered or bonus token).
"""

from __future__ import annotations

from osd.meters.served_totals import ServedTotals
from osd.monitor.buckets import Series
from osd.records.drafter_id import DrafterId
from osd.records.outcome import Round
from osd.records.query import FinishReason, QueryStats

MEANINGS = {
    "queries_total": "Queries that ended, for whatever reason.",
    "queries_cancelled_total": "Of the queries that ended, those that were cancelled, by a client that went away say.",
    "queries_failed_total": "Of the queries that ended, those that ended with an error.",
    "routed_queries_total": "Queries that named no domain and got one by their prompts (drafter.route).",
    "prompt_tokens_total": "Prompt tokens of the queries that ended.",
    "reused_tokens_total": "Of the prompt tokens, those that an earlier query had left in the cache: not read again.",
    "output_tokens_total": "Output tokens of the queries that ended.",
    "rounds_total": "Rounds of all queries, plain ones included; a pass over 4 queries is 4 rounds.",
    "plain_rounds_total": "Of the rounds, those in which nothing was proposed: plain decoding.",
    "proposed_total": "Tokens that the drafter proposed.",
    "accepted_total": "Of the proposed tokens, those that the target accepted.",
    "committed_total": "Tokens committed by rounds: those accepted, and one recovered or bonus token a round.",
    "draft_seconds_total": "Seconds spent in proposing; a pass over several queries counts once.",
    "verify_seconds_total": "Seconds spent in verifying; a pass over several queries counts once.",
    "prefill_seconds_total": "Seconds spent in reading prompts, summed over the queries that ended.",
    "paused_seconds_total": "Seconds that the engine paused while it had work, so that training could run.",
    "swaps_total": "Drafter versions swapped in while serving.",
}
"""Counter name to help text; all count since the engine started."""

MAX_VERSIONS = 32
"""Of one drafter that are counted by version: a service that learns makes ever more of them."""


class Counters:
    """All counters of one engine."""

    def __init__(self) -> None:
        self.values: dict[str, float] = dict.fromkeys(MEANINGS, 0.0)
        self.by_drafter: dict[DrafterId, dict[str, int]] = {}
        """Of each drafter's newest versions."""
        self.served = ServedTotals()
        self._row_ms = self._plain_token_ms = 0.0
        """Durations of the latest round and of a plain one, per row; used while the rows of that round are counted."""

    def add(self, name: str, amount: float = 1.0) -> None:
        """Increase a counter; the name must be one of MEANINGS."""
        self.values[name] += amount

    def add_times(self, draft_ms: float, verify_ms: float, *, num_rows: int = 1, plain_ms: float = 0.0) -> None:
        """Add the durations of one pass over several rows; their rounds are counted next (`add_round`).

        Args:
            draft_ms: duration of drafting.
            verify_ms: duration of verifying.
            num_rows: rows in the pass.
            plain_ms: expected duration of a plain pass over them.
        """
        self.add("draft_seconds_total", draft_ms / 1e3)
        self.add("verify_seconds_total", verify_ms / 1e3)
        self._row_ms = (draft_ms + verify_ms) / num_rows
        self._plain_token_ms = plain_ms / num_rows

    def add_round(self, round_: Round, committed: int, domain: str) -> None:
        """Count one row's round. A round that proposed nothing is a plain round, and belongs to no drafter."""
        proposed, accepted = round_.proposed, round_.accepted
        values = self.values
        values["rounds_total"] += 1
        values["committed_total"] += committed
        if not proposed:
            values["plain_rounds_total"] += 1
        else:
            values["proposed_total"] += proposed
            values["accepted_total"] += accepted
            drafter = DrafterId(round_.drafter_name, round_.drafter_version)
            counts = self.by_drafter.get(drafter) or self._new_drafter(drafter)
            counts["rounds"] += 1
            counts["proposed"] += proposed
            counts["accepted"] += accepted
            counts["committed"] += committed
        self.served.add_round(
            Series(domain, round_.drafter_name, round_.drafter_version),
            proposed=proposed,
            accepted=accepted,
            committed=committed,
            took_ms=self._row_ms,
            plain_ms=committed * self._plain_token_ms,
        )

    def _new_drafter(self, drafter: DrafterId) -> dict[str, int]:
        """Counts of a version that proposes for the first time; those of the oldest give way where there are many."""
        versions = sorted(one.version for one in self.by_drafter if one.name == drafter.name)
        if len(versions) >= MAX_VERSIONS:
            del self.by_drafter[DrafterId(drafter.name, versions[0])]
        return self.by_drafter.setdefault(drafter, {"rounds": 0, "proposed": 0, "accepted": 0, "committed": 0})

    def add_query(self, stats: QueryStats, reason: FinishReason) -> None:
        """Count one finished query."""
        self.add("queries_total")
        if reason == "cancelled":
            self.add("queries_cancelled_total")
        if reason == "error":
            self.add("queries_failed_total")
        self.add("prompt_tokens_total", stats.prompt_tokens)
        self.add("reused_tokens_total", stats.reused_tokens)
        self.add("output_tokens_total", stats.output_tokens)
        self.add("prefill_seconds_total", stats.prefill_ms / 1e3)
