"""Protocols for writing and reading outcomes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from osd.records.outcome import Outcome


class OutcomeRecorder(Protocol):
    """Records outcomes off the engine's thread; never blocks, never raises."""

    def record(self, make: Callable[[], Outcome]) -> None:
        """Queue an outcome, which `make` assembles later."""
        ...

    def takes(self, request_id: str) -> bool:
        """Whether this query's outcome is to be recorded; asked once, when the query comes."""
        ...

    def counters(self) -> dict[str, int]:
        """Monotone counts of recorded, spilled and dropped outcomes."""
        ...


class OutcomeSink(Protocol):
    """A stream that takes outcomes."""

    def put(self, outcome: Outcome) -> None:
        """Append one outcome.

        Raises:
            OutcomeSinkError: it cannot take the outcome now; the caller should store it.
        """
        ...


class OutcomeSource(Protocol):
    """A stream from which the trainer reads outcomes, each at least once."""

    def read(self, max_count: int, block_ms: int) -> list[tuple[str, Outcome]]:
        """The next outcomes as (stream position, outcome); those left unacknowledged by a dead reader come first.

        Raises:
            OutcomeSinkError: the stream cannot be reached.
        """
        ...

    def ack(self, positions: Sequence[str]) -> None:
        """Acknowledge outcomes, so that they are never delivered again: a checkpoint contains them.

        Raises:
            OutcomeSinkError: the stream cannot be reached.
        """
        ...

    def lag(self) -> int | None:
        """Number of entries not yet read; None if the stream cannot be reached."""
        ...
