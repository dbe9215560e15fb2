"""Records kept by domain, within a limit: the largest domain loses its oldest first."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from heapq import merge

from osd.records.outcome import Outcome

_BYTES_PER_TOKEN = 40
"""Size of a Python integer and of the tuple's pointer to it."""
_BYTES_PER_RECORD = 1000


@dataclass(frozen=True, slots=True)
class Record:
    """An outcome in the replay."""

    sequence: int
    """Order of arrival, counted from 0."""
    outcome: Outcome
    size_bytes: int


class DomainRecords:
    """A bounded memory in which a flood of one domain does not displace the others.

    Args:
        max_bytes: of all records together.
        max_records: most records; None: as many as fit.
    """

    def __init__(self, max_bytes: int, max_records: int | None = None) -> None:
        self.max_bytes, self._max_records = max_bytes, max_records
        self._by_domain: dict[str, deque[Record]] = {}
        self._bytes_by_domain: dict[str, int] = {}
        self._num = self.size_bytes = 0

    def add(self, record: Record) -> list[Record]:
        """Add the newest record, no larger than `max_bytes`; returns those that had to go."""
        domain = record.outcome.domain
        self._by_domain.setdefault(domain, deque()).append(record)
        self._count(record, 1)
        gone = []
        while self.size_bytes > self.max_bytes or (self._max_records is not None and self._num > self._max_records):
            gone.append(self._drop_one())
        return gone

    def __iter__(self) -> Iterator[Record]:
        """All records in order of arrival."""
        return merge(*self._by_domain.values(), key=lambda record: record.sequence)

    def __len__(self) -> int:
        return self._num

    def _drop_one(self) -> Record:
        # By bytes, and by number where that is what is limited.
        if self.size_bytes > self.max_bytes:
            largest = max(self._by_domain, key=lambda domain: self._bytes_by_domain[domain])
        else:
            largest = max(self._by_domain, key=lambda domain: len(self._by_domain[domain]))
        record = self._by_domain[largest].popleft()
        self._count(record, -1)
        if not self._by_domain[largest]:
            del self._by_domain[largest], self._bytes_by_domain[largest]
        return record

    def _count(self, record: Record, sign: int) -> None:
        domain = record.outcome.domain
        self._bytes_by_domain[domain] = self._bytes_by_domain.get(domain, 0) + sign * record.size_bytes
        self.size_bytes += sign * record.size_bytes
        self._num += sign


def size_bytes(outcome: Outcome) -> int:
    """Approximate memory of an outcome."""
    arrays = len(outcome.hidden) + len(outcome.top_ids) + len(outcome.top_logprobs)
    arrays += len(outcome.rejected_ids) + len(outcome.rejected_top_ids) + len(outcome.rejected_top_logprobs)
    return arrays + _BYTES_PER_TOKEN * (len(outcome.prompt_ids) + len(outcome.output_ids)) + _BYTES_PER_RECORD
