"""Bounds what all engines together write to the outcome stream, by having them record a share of their queries.

Which queries is decided by a hash of their ids, so each query has the same chance whatever its domain, length or
engine, and what is learnt from is an unbiased sample of the traffic.
"""

from __future__ import annotations

import hashlib

_LEAST_SHARE = 1e-4
_LONGEST_STEP = 2.0
"""The share grows at most by this factor from one look to the next: after a lull, traffic may be back at once."""
_BELOW_CAPACITY, _REGAIN = 0.8, 1.01
"""Where engines had to drop outcomes, this share of what the stream took is its limit, which then grows slowly."""
_NEWEST = 0.5
"""Weight of the newest rate in the average."""


def is_recorded(query: str, share: float) -> bool:
    """Whether a query belongs to the share that is recorded; with a larger share it still does."""
    digest = hashlib.blake2b(query.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2.0**64


class RecordShare:
    """Chooses the share by what was written.

    Args:
        max_bytes_per_s: most bytes of outcomes that the stream should take.
    """

    def __init__(self, max_bytes_per_s: float) -> None:
        self._max_bytes_per_s = self._limit = max_bytes_per_s
        self._dropped = 0
        self._before: tuple[float, float] | None = None
        self._offered = 0.0
        """Bytes/s that recording everything would take: a moving average."""
        self.share = 1.0
        self.bytes_per_s = 0.0
        """That were written lately."""

    def look(self, total_bytes: float, at_s: float, dropped: int = 0) -> float:
        """Update the share.

        Args:
            total_bytes: ever written to the stream.
            at_s: monotonic seconds.
            dropped: outcomes that engines ever lost, since the stream did not take them in time.

        Returns:
            The share of queries to record from now on, above 0 and up to 1.
        """
        before, self._before = self._before, (total_bytes, at_s)
        if before is None or at_s <= before[1] or total_bytes < before[0]:  # the stream was deleted and begun again
            return self.share
        self.bytes_per_s = (total_bytes - before[0]) / (at_s - before[1])
        offered = self.bytes_per_s / self.share
        # Rising load counts at once, falling load bit by bit.
        self._offered = max(offered, self._offered + _NEWEST * (offered - self._offered))
        if dropped > self._dropped:  # so what was written is all that it takes
            self._limit = _BELOW_CAPACITY * self.bytes_per_s
        else:
            self._limit = min(self._limit * _REGAIN, self._max_bytes_per_s)
        self._dropped = dropped
        wanted = self._limit / self._offered if self._offered else 1.0
        self.share = max(min(wanted, self.share * _LONGEST_STEP, 1.0), _LEAST_SHARE)
        return self.share
