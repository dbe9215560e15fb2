"""One outcome stream for several trainers: the base drafter's gets every outcome, a domain's those of its domain."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from osd.ports.outcomes import OutcomeSource
from osd.records.outcome import Outcome

_BASE = ""


class Fork:
    """The stream as the base drafter's trainer reads it (implements `OutcomeSource`).

    An outcome is acknowledged once the checkpoint of every trainer that got it contains it.

    Args:
        source: the stream.
        on_outcome: called with each outcome's domain.
    """

    def __init__(self, source: OutcomeSource, on_outcome: Callable[[str], None]) -> None:
        self._source, self._on_outcome = source, on_outcome
        self._branches: dict[str, Branch] = {}
        self._owed: dict[str, set[str]] = {}
        """Position to the domains whose trainers have not acknowledged it."""

    def read(self, max_count: int, block_ms: int) -> list[tuple[str, Outcome]]:
        """See `OutcomeSource`; hands each outcome to its domain's branch, too."""
        entries = self._source.read(max_count, block_ms)
        for position, outcome in entries:
            branch = self._branches.get(outcome.domain)
            self._owed[position] = {_BASE} if branch is None else {_BASE, outcome.domain}
            if branch is not None:
                branch.put(position, outcome)
            self._on_outcome(outcome.domain)
        return entries

    def ack(self, positions: Sequence[str]) -> None:
        """See `OutcomeSource`."""
        self.acked_by(_BASE, positions)

    def lag(self) -> int | None:
        """See `OutcomeSource`."""
        return self._source.lag()

    def branch(self, domain: str) -> Branch:
        """The stream as a domain's trainer reads it, from now on."""
        branch = self._branches[domain] = Branch(self, domain)
        return branch

    def close(self, domain: str) -> None:
        """End a domain's branch, whose trainer owes nothing any more."""
        self._branches.pop(domain, None)
        self.acked_by(domain, list(self._owed))

    def acked_by(self, reader: str, positions: Sequence[str]) -> None:
        """One trainer acknowledges outcomes. If the stream cannot be reached, it may do so again.

        Raises:
            OutcomeSinkError: the stream cannot be reached.
        """
        for position in positions:
            self._owed.get(position, set()).discard(reader)
        if ready := [position for position in positions if position in self._owed and not self._owed[position]]:
            self._source.ack(ready)
        for position in ready:
            del self._owed[position]


class Branch:
    """The outcomes of one domain (implements `OutcomeSource`)."""

    def __init__(self, fork: Fork, domain: str) -> None:
        self._fork, self._domain = fork, domain
        self._waiting = deque[tuple[str, Outcome]]()

    def put(self, position: str, outcome: Outcome) -> None:
        """Append an outcome; one that was read before may have any position, which is then acknowledged to nobody."""
        self._waiting.append((position, outcome))

    def read(self, max_count: int, block_ms: int) -> list[tuple[str, Outcome]]:
        """See `OutcomeSource`; never waits."""
        return [self._waiting.popleft() for _ in range(min(max_count, len(self._waiting)))]

    def ack(self, positions: Sequence[str]) -> None:
        """See `OutcomeSource`."""
        self._fork.acked_by(self._domain, positions)

    def lag(self) -> int | None:
        """See `OutcomeSource`."""
        return len(self._waiting)
