"""The replay: a bounded memory of outcomes from which training batches are drawn.

A hash of its request id assigns each record to training or held-out, permanently. Training records are sampled with a
preference for new ones and stratified by domain. Held-out records are never trained on. Of both, the domain with the
most loses its oldest first.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from osd.records.outcome import Outcome
from trainer.replay.domain_records import DomainRecords, Record, size_bytes

_HALF_LIFE_RECORDS = 1000.0
_SHORTEST_HALF_LIFE_RECORDS = 8.0
_MOST_COPIES = 8
"""Records with the same prompt and answer; more say nothing new, and one query repeated would outweigh all others."""


Added = Literal["kept", "copy", "refused"]
"""What became of an outcome. The stream may deliver one twice, and the second time it is refused."""


class Replay:
    """Stores outcomes up to a memory limit.

    Args:
        max_bytes: most bytes of training and held-out records together.
        held_out_share: share of records that are held out, and the most of `max_bytes` that they may take.
        held_out_records: most held-out records kept.
        seed: of the sampling.
    """

    def __init__(self, max_bytes: int, held_out_share: float, held_out_records: int, seed: int) -> None:
        max_held_out_bytes = int(max_bytes * held_out_share)
        self._held_out_share = held_out_share
        self._rng = np.random.default_rng(seed)
        self._train = DomainRecords(max_bytes - max_held_out_bytes)
        self._held_out = DomainRecords(max_held_out_bytes, held_out_records)
        self._request_ids: set[str] = set()
        self._copies = Counter[bytes]()
        self._changed_at: float = -4 * _HALF_LIFE_RECORDS
        """Sequence number at which the traffic last changed."""
        self.num_seen = 0
        """Number of records ever added, which is the next one's sequence number."""

    def add(self, outcome: Outcome) -> Added:
        """Add one outcome, unless it is there already, too large, or one of many with the same prompt and answer."""
        record = Record(self.num_seen, outcome, size_bytes(outcome))
        records = self._held_out if self.is_held_out(outcome.request_id) else self._train
        content = _content(outcome)
        if outcome.request_id in self._request_ids or record.size_bytes > records.max_bytes:
            return "refused"
        if self._copies[content] >= _MOST_COPIES:
            return "copy"
        self.num_seen += 1
        self._request_ids.add(outcome.request_id)
        self._copies[content] += 1
        for gone in records.add(record):
            self._forget(gone)
        return "kept"

    def is_held_out(self, request_id: str) -> bool:
        """Whether this id's record is held out; the same in every process."""
        return is_held_out(request_id, self._held_out_share)

    def draw(self) -> Iterator[Outcome]:
        """Training records in random order, each once; newer records and rarer domains tend to come first.

        A record's weight halves with every half-life of age. A domain's total weight is then reduced to its square
        root, so that a large domain leads without crowding out the others. Ordering by log weight + Gumbel noise is
        weighted sampling without replacement (Efraimidis and Spirakis 2006; Kool et al. 2019, arXiv 1903.06059).
        """
        records = list(self._train)
        if not records:
            return
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
        return self._train.size_bytes + self._held_out.size_bytes

    def since(self, sequence: int) -> list[tuple[int, Outcome]]:
        """Records with at least this sequence number, in order of arrival."""
        kept = [record for record in (*self._train, *self._held_out) if record.sequence >= sequence]
        return [(record.sequence, record.outcome) for record in sorted(kept, key=lambda record: record.sequence)]

    @property
    def oldest(self) -> int:
        """Sequence number of the oldest record; the next record's if there is none."""
        return min((record.sequence for record in (*self._train, *self._held_out)), default=self.num_seen)

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

    def _forget(self, record: Record) -> None:
        self._request_ids.discard(record.outcome.request_id)
        content = _content(record.outcome)
        self._copies[content] -= 1
        if not self._copies[content]:
            del self._copies[content]

    def _log_weights(self, records: list[Record]) -> NDArray[np.float64]:
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


def _content(outcome: Outcome) -> bytes:
    return hashlib.blake2b(repr((outcome.prompt_ids, outcome.output_ids)).encode(), digest_size=16).digest()


def is_held_out(key: str, share: float) -> bool:
    """True for about `share` of all keys; deterministic, the same in every process."""
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64
