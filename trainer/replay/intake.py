"""Reads the outcome stream into the replay, and acknowledges what a checkpoint contains.

consumes: outcomes from an `OutcomeSource`, each at least once
waits for: at most the caller's `block_ms`
is unblocked by: a new outcome
on failure: an unreachable source is tried again after a growing pause; an unfit outcome is counted and skipped
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from osd.ports.outcomes import OutcomeSource
from osd.records.errors import OutcomeSinkError
from osd.records.outcome import Outcome
from trainer.drift.drift import Drifted, DriftMonitor
from trainer.examples.examples import Alignment, unfit_because
from trainer.replay.replay import Replay
from trainer.students.token_counts import TokenCounts

_log = logging.getLogger(__name__)
_READ_RECORDS = 64
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 15.0


class Intake:
    """Moves outcomes from the stream into the replay, each exactly once.

    Args:
        source: the stream.
        replay: receives the outcomes.
        counts: told of every new training record.
        drift: told of every new record.
        alignment: of the drafter; tells which outcomes cannot be trained on.
        target_id: outcomes of other targets are skipped.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        source: OutcomeSource,
        replay: Replay,
        counts: TokenCounts,
        drift: DriftMonitor,
        alignment: Alignment,
        target_id: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source, self._replay, self._counts, self._drift = source, replay, counts, drift
        self._alignment, self._target_id, self._clock = alignment, target_id, clock
        self.unacked: list[str] = []
        """Positions read but not yet acknowledged, oldest first."""
        self._num_checkpointed = 0
        self.last_position = ""
        self.num_unfit = 0
        self.drifted: list[Drifted] = []
        """Drifts that the latest `read` completed."""
        self.new_tokens = 0
        """Output tokens that came with the latest `read`, without held-out ones."""
        self.lag: int | None = None
        self.problem = ""
        """Why the stream cannot be read; empty while it can."""
        self._pause_s, self._retry_at_s = _FIRST_PAUSE_S, 0.0

    def read(self, block_ms: int) -> None:
        """Read the outcomes that are there; wait at most `block_ms` for the first."""
        self.drifted, self.new_tokens = [], 0
        if self._clock() < self._retry_at_s:
            return
        try:
            entries = self._source.read(_READ_RECORDS, block_ms)
            self.lag = self._source.lag()
        except OutcomeSinkError as error:
            self._away(error)
            return
        self._back()
        known = set(self.unacked)
        for position, outcome in entries:
            if position in known:
                continue  # the stream delivered it again before it was acknowledged
            self.unacked.append(position)
            self.last_position = position
            self._take(outcome)

    def mark_checkpointed(self) -> None:
        """Record that a checkpoint contains everything read so far, so that `ack` may acknowledge it."""
        self._num_checkpointed = len(self.unacked)

    def ack(self) -> None:
        """Acknowledge what the checkpoint contains. If the stream cannot be reached, the next call tries again."""
        positions = self.unacked[: self._num_checkpointed]
        if not positions or self._clock() < self._retry_at_s:
            return
        try:
            self._source.ack(positions)
        except OutcomeSinkError as error:
            self._away(error)
            return
        del self.unacked[: len(positions)]
        self._num_checkpointed = 0

    def _take(self, outcome: Outcome) -> None:
        reason = unfit_because(outcome, self._alignment)
        if outcome.target_id != self._target_id:
            reason = f"it is of target {outcome.target_id!r}, this trainer's is {self._target_id!r}"
        if reason:
            self.num_unfit += 1
            log = _log.warning if self.num_unfit == 1 else _log.debug
            log("outcome %s is not used: %s", outcome.request_id, reason)
        elif (added := self._replay.add(outcome)) != "refused":
            self.drifted += self._drift.add(outcome)
            if not self._replay.is_held_out(outcome.request_id):
                self.new_tokens += len(outcome.output_ids)
                if added == "kept":
                    self._counts.observe(outcome)

    def _away(self, error: OutcomeSinkError) -> None:
        if not self.problem:
            _log.warning("the outcome stream is away, training goes on from the replay: %s", error)
        self.problem, self.lag = str(error), None
        self._retry_at_s = self._clock() + self._pause_s
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)

    def _back(self) -> None:
        if self.problem:
            _log.info("the outcome stream is back")
        self.problem, self._pause_s, self._retry_at_s = "", _FIRST_PAUSE_S, 0.0
