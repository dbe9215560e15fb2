"""The replay: a bounded memory of outcomes from which training batches are drawn.

A hash of its request id assigns each record to training or held-out, permanently. Training records are sampled with a
preference for new ones and stratified by domain. Held-out records are never trained on; only the newest are kept.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osd.records.outcome import Outcome

_HALF_LIFE_RECORDS = 1000.0
_SHORTEST_HALF_LIFE_RECORDS = 8.0
_BYTES_PER_TOKEN = 40
"""Size of a Python integer and of the tuple's pointer to it."""
_BYTES_PER_RECORD = 1000


@dataclass(frozen=True, slots=True)
class _Record:
    sequence: int
    """Order of arrival, counted from 0."""
    outcome: Outcome
    size_bytes: int


class Replay:
    """Stores outcomes up to a memory limit.

    Args:
        max_bytes: most bytes of training and held-out records together; the oldest are dropped first.
        held_out_share: share of records that are held out, and the most of `max_bytes` that they may take.
        held_out_records: most held-out records kept.
        seed: of the sampling.
    """

    def __init__(self, max_bytes: int, held_out_share: float, held_out_records: int, seed: int) -> None:
        self._max_held_out_bytes = int(max_bytes * held_out_share)
        self._max_train_bytes = max_bytes - self._max_held_out_bytes
        self._held_out_share = held_out_share
        self._max_held_out_records = held_out_records
        self._rng = np.random.default_rng(seed)
        self._train: deque[_Record] = deque()
        self._held_out: deque[_Record] = deque()
        self._train_bytes = self._held_out_bytes = 0
        self._request_ids: set[str] = set()
        self._changed_at: float = -4 * _HALF_LIFE_RECORDS
        """Sequence number at which the traffic last changed."""
        self.num_seen = 0
        """Number of records ever added, which is the next one's sequence number."""

    def add(self, outcome: Outcome) -> bool:
        """Add one outcome; False if it was added before (the stream delivers at least once) or is too large."""
        record = _Record(self.num_seen, outcome, _size_bytes(outcome))
        held_out = self.is_held_out(outcome.request_id)
        limit_bytes = self._max_held_out_bytes if held_out else self._max_train_bytes
        if outcome.request_id in self._request_ids or record.size_bytes > limit_bytes:
            return False
        self.num_seen += 1
        self._request_ids.add(outcome.request_id)
        if held_out:
            self._held_out.append(record)
            self._held_out_bytes += record.size_bytes
            while self._held_out_bytes > self._max_held_out_bytes or len(self._held_out) > self._max_held_out_records:
                self._held_out_bytes -= self._forget(self._held_out)
        else:
            self._train.append(record)
            self._train_bytes += record.size_bytes
            while self._train_bytes > self._max_train_bytes:
                self._train_bytes -= self._forget(self._train)
        return True

    def is_held_out(self, request_id: str) -> bool:
        """Whether this id's record is held out; the same in every process."""
        return is_held_out(request_id, self._held_out_share)

    def draw(self) -> Iterator[Outcome]:
        """Training records in random order, each once; newer records and rarer domains tend to come first.

        A record's weight halves with every half-life of age. A domain's total weight is then reduced to its square
        root, so that a large domain leads without crowding out the others. Ordering by log weight + Gumbel noise is
        weighted sampling without replacement (Efraimidis and Spirakis 2006; Kool et al. 2019, arXiv 1903.06059).
        """
        if not self._train:
            return
        records = list(self._train)
        keys = self._log_weights(records) + self._rng.gumbel(size=len(records))
        for index in np.argsort(-keys, kind="stable"):
            yield records[index].outcome

    def held_out(self) -> list[Outcome]:
        """The newest held-out records, oldest first."""
        return [record.outcome for record in self._held_out]

    def focus_on_present(self) -> None:
        """React to a change of traffic: all older records together now have about a sixteenth of the weight."""
        self._changed_at = self.num_seen

    @property
    def num_train(self) -> int:
        """Number of training records."""
        return len(self._train)

    @property
    def num_held_out(self) -> int:
        """Number of held-out records."""
        return len(self._held_out)

    @property
    def size_bytes(self) -> int:
        """Approximate memory of all records, in bytes."""
        return self._train_bytes + self._held_out_bytes

    def since(self, sequence: int) -> list[tuple[int, Outcome]]:
        """Records with at least this sequence number, in order of arrival."""
        kept = [record for record in (*self._train, *self._held_out) if record.sequence >= sequence]
        return [(record.sequence, record.outcome) for record in sorted(kept, key=lambda record: record.sequence)]

    @property
    def oldest(self) -> int:
        """Sequence number of the oldest record; the next record's if there is none."""
        return min((records[0].sequence for records in (self._train, self._held_out) if records), default=self.num_seen)

    def state(self) -> dict[str, Any]:
        """Everything but the records, JSON-serialisable."""
        return {
            "num_seen": self.num_seen,
            "changed_at": self._changed_at,
            "rng": self._rng.bit_generator.state,
        }

    def restore(self, state: dict[str, Any], records: list[tuple[int, Outcome]]) -> None:
        """Restore, into an empty replay, what `state` and `since` returned."""
        for sequence, outcome in records:
            self.num_seen = sequence
            self.add(outcome)
        self.num_seen = state["num_seen"]
        self._changed_at = state["changed_at"]
        self._rng.bit_generator.state = state["rng"]

    def _forget(self, records: deque[_Record]) -> int:
        record = records.popleft()
        self._request_ids.discard(record.outcome.request_id)
        return record.size_bytes

    def _log_weights(self, records: list[_Record]) -> NDArray[np.float64]:
        # The half-life is a quarter of the records since the traffic last changed, within bounds.
        half_life = (self.num_seen - self._changed_at) / 4
        half_life = min(max(half_life, _SHORTEST_HALF_LIFE_RECORDS), _HALF_LIFE_RECORDS)
        ages = self.num_seen - np.array([record.sequence for record in records])
        log_weights = -np.log(2.0) * ages / half_life
        numbers: dict[str, int] = {}
        domains = np.array([numbers.setdefault(record.outcome.domain, len(numbers)) for record in records])
        domain_weights = np.bincount(domains, weights=np.exp(log_weights))
        # The clamp avoids log(0): a domain not seen for very long underflows to weight 0.
        log_weights -= 0.5 * np.log(np.maximum(domain_weights, np.finfo(np.float64).tiny))[domains]
        return np.asarray(log_weights, dtype=np.float64)


def is_held_out(key: str, share: float) -> bool:
    """True for about `share` of all keys; deterministic, the same in every process."""
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def _size_bytes(outcome: Outcome) -> int:
    arrays = len(outcome.hidden) + len(outcome.top_ids) + len(outcome.top_logprobs)
    arrays += len(outcome.rejected_ids) + len(outcome.rejected_top_ids) + len(outcome.rejected_top_logprobs)
    return arrays + _BYTES_PER_TOKEN * (len(outcome.prompt_ids) + len(outcome.output_ids)) + _BYTES_PER_RECORD
