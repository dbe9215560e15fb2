"""Settles ended queries: outcome, counters, and a point of the acceptance history."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from osd.config.settings import Config
from osd.engine.recording import outcome_maker
from osd.engine.sequence import Sequence, acceptance_point
from osd.meters.counters import Counters
from osd.models.target import Target
from osd.ports.drafter import Drafter
from osd.ports.outcomes import OutcomeRecorder
from osd.records.query import FinishReason, QueryStats
from osd.records.status import AcceptancePoint
from osd.speculation.arm import Arm

_HISTORY_QUERIES = 4096


class Endings:
    """Records and counts ended queries.

    Args:
        config: sections engine and outcomes are used.
        counters: the engine's counters.
        recorder: records outcomes; None records nothing.
    """

    def __init__(self, config: Config, counters: Counters, recorder: OutcomeRecorder | None) -> None:
        self._config, self._counters, self._recorder = config, counters, recorder
        self._history: deque[AcceptancePoint] = deque(maxlen=_HISTORY_QUERIES)

    def settle(self, sequence: Sequence, reason: FinishReason, target: Target, arms: Iterable[Arm]) -> QueryStats:
        """Record and count a query that ends but still holds its row; returns its statistics."""
        sequence.finish_reason = reason
        stats = sequence.stats()
        if reason != "error":  # the state after a failed step is not worth learning from
            self._record(sequence, stats, target, [arm.drafter for arm in arms])
        self._counters.add_query(stats, reason)
        self._counters.served.add_query(sequence.request.domain, stats.output_tokens)
        if stats.rounds:
            query = int(self._counters.values["queries_total"])
            self._history.append(acceptance_point(sequence, stats, query))
        return stats

    def _record(self, sequence: Sequence, stats: QueryStats, target: Target, drafters: list[Drafter]) -> None:
        """Queue the query's outcome, unless nothing can be learnt from it."""
        if self._recorder and sequence.tops:
            maker = outcome_maker(
                sequence,
                stats,
                target,
                drafter_kind=drafters[0].id.name if drafters else "none",
                prompt_hidden_tokens=self._config.outcomes.prompt_hidden_tokens
                if any(drafter.needs_hidden for drafter in drafters)
                else None,
                engine_id=self._config.engine.id,
            )
            self._recorder.record(maker)

    def history(self, limit: int) -> list[AcceptancePoint]:
        """The acceptance of the newest queries that had rounds, oldest first."""
        return list(self._history)[-limit:] if limit > 0 else []
