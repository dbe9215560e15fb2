"""Where outcomes go, and where they are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from osd.records.outcome import Outcome


class OutcomeRecorder(Protocol):
    """Takes the making of an outcome off the engine's thread; never blocks, never raises."""

    def record(self, make: Callable[[], Outcome]) -> None:
        """Queue one."""
        ...

    def counters(self) -> dict[str, int]:
        """Monotone counts of what became of them."""
        ...


class OutcomeSink(Protocol):
    """Where the recorder puts outcomes."""

    def put(self, outcome: Outcome) -> None:
        """Append one outcome.

        Raises:
            OutcomeSinkError: it cannot be taken now; the caller keeps it.
        """
        ...


class OutcomeSource(Protocol):
    """Where the trainer reads outcomes, at least once each."""

    def read(self, max_count: int, block_ms: int) -> list[tuple[str, Outcome]]:
        """The next outcomes as (stream position, outcome), those unacknowledged by a dead reader first.

        Raises:
            OutcomeSinkError: the stream is away.
        """
        ...

    def ack(self, positions: Sequence[str]) -> None:
        """Never deliver these again: a checkpoint contains them.

        Raises:
            OutcomeSinkError: the stream is away.
        """
        ...

    def lag(self) -> int | None:
        """Entries not yet read; None when the stream is away."""
        ...
