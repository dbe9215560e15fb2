"""Buckets of every tier in memory, bounded: an hour by seconds, a day by minutes, a month by hours."""

from __future__ import annotations

from collections.abc import Iterator

from osd.monitor.buckets import TIERS, Bucket, Figures, Series, Tier

_MOST = {"seconds": 780, "minutes": 1440, "hours": 720}

Place = tuple[Tier, float]
"""A tier, and when a bucket of it begins."""


class WaitingBuckets:
    """Buckets that are not stored yet. Of too many in one tier, the oldest are dropped."""

    def __init__(self) -> None:
        self._buckets: dict[Tier, dict[float, Bucket]] = {tier: {} for tier in TIERS}

    def add(self, at_s: float, series: Series, figures: Figures) -> None:
        """Count figures in every tier."""
        for tier in TIERS:
            self._bucket(tier, tier.start_of(at_s)).add(series, figures)

    def merge(self, tier: Tier, bucket: Bucket) -> None:
        """Add a bucket of one tier."""
        self._bucket(tier, bucket.at_s).merge(bucket)

    def items(self) -> Iterator[tuple[Place, Bucket]]:
        """Every bucket with its place."""
        for tier, buckets in self._buckets.items():
            for at_s, bucket in buckets.items():
                yield (tier, at_s), bucket

    def within(self, tier: Tier, from_s: float, to_s: float) -> list[Bucket]:
        """Copies of the tier's buckets that begin in the range."""
        return [one.merged_with(None) for at_s, one in self._buckets[tier].items() if from_s <= at_s <= to_s]

    def _bucket(self, tier: Tier, at_s: float) -> Bucket:
        buckets = self._buckets[tier]
        if at_s not in buckets:
            buckets[at_s] = Bucket(at_s, {})
            if len(buckets) > _MOST[tier.name]:
                del buckets[min(buckets)]
        return buckets.get(at_s) or Bucket(at_s, {})
