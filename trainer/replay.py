"""Replay: what the trainer still remembers of the outcome stream.

Every record falls into train or held-out by a hash of its request id, for good. Training records are drawn with a
preference for the newest, stratified by domain; held-out ones are never trained on, and only the newest are kept.
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
"""A Python integer and the tuple's pointer to it."""
_BYTES_PER_RECORD = 1000


@dataclass(frozen=True, slots=True)
class _Record:
    sequence: int
    """Running number of arrival."""
    outcome: Outcome
    size_bytes: int


class Replay:
    """A bounded memory of outcomes.

    Args:
        max_bytes: most bytes of train and held-out records together; the oldest go first.
        held_out_share: share of records that are held out, and most of `max_bytes` that they may take.
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
        """Records ever added; the next one's sequence number."""

    def add(self, outcome: Outcome) -> bool:
        """Remember one outcome; False when it is known already (the stream delivers at least once) or too large."""
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
        """The same answer for the same id, in every process."""
        return is_held_out(request_id, self._held_out_share)

    def draw(self) -> Iterator[Outcome]:
        """Train records in random order, none twice: the newer, and the rarer its domain, the sooner.

        Weights halve every so many records of age; a domain's sum of weights is then damped to its square root, so
        that a large domain leads but does not drown the others. Ordering by log weight + Gumbel noise is weighted
        sampling without replacement (Efraimidis and Spirakis 2006; Kool et al. 2019, arXiv 1903.06059).
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
        """The traffic has changed: from now on, older records share about a sixteenth of the weight."""
        self._changed_at = self.num_seen

    @property
    def num_train(self) -> int:
        """Train records."""
        return len(self._train)

    @property
    def num_held_out(self) -> int:
        """Held-out records."""
        return len(self._held_out)

    @property
    def size_bytes(self) -> int:
        """Approximate memory of all records."""
        return self._train_bytes + self._held_out_bytes

    def since(self, sequence: int) -> list[tuple[int, Outcome]]:
        """Records still kept whose sequence number is at least this, in order of arrival."""
        kept = [record for record in (*self._train, *self._held_out) if record.sequence >= sequence]
        return [(record.sequence, record.outcome) for record in sorted(kept, key=lambda record: record.sequence)]

    @property
    def oldest(self) -> int:
        """Sequence number of the oldest record kept; the next one's when there is none."""
        return min((records[0].sequence for records in (self._train, self._held_out) if records), default=self.num_seen)

    def state(self) -> dict[str, Any]:
        """JSON-serialisable: all but the records."""
        return {
            "num_seen": self.num_seen,
            "changed_at": self._changed_at,
            "rng": self._rng.bit_generator.state,
        }

    def restore(self, state: dict[str, Any], records: list[tuple[int, Outcome]]) -> None:
        """Become what `state` and `since` said, in an empty replay."""
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
        # Four half-lives lie between the latest change of the traffic and now.
        half_life = (self.num_seen - self._changed_at) / 4
        half_life = min(max(half_life, _SHORTEST_HALF_LIFE_RECORDS), _HALF_LIFE_RECORDS)
        ages = self.num_seen - np.array([record.sequence for record in records])
        log_weights = -np.log(2.0) * ages / half_life
        numbers: dict[str, int] = {}
        domains = np.array([numbers.setdefault(record.outcome.domain, len(numbers)) for record in records])
        domain_weights = np.bincount(domains, weights=np.exp(log_weights))
        # A domain not seen for very long may weigh 0 in float64.
        log_weights -= 0.5 * np.log(np.maximum(domain_weights, np.finfo(np.float64).tiny))[domains]
        return np.asarray(log_weights, dtype=np.float64)


def is_held_out(key: str, share: float) -> bool:
    """A share of all keys, the same in every process."""
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def _size_bytes(outcome: Outcome) -> int:
    arrays = len(outcome.hidden) + len(outcome.top_ids) + len(outcome.top_logprobs)
    return arrays + _BYTES_PER_TOKEN * (len(outcome.prompt_ids) + len(outcome.output_ids)) + _BYTES_PER_RECORD
