"""Reads a history: chooses the tier, merges buckets to points and series, and bounds the answer."""

from __future__ import annotations

import math
from collections.abc import Sequence

from osd.monitor.buckets import (
    MAX_POINTS,
    MAX_SERIES,
    TIERS,
    Bucket,
    By,
    Figures,
    HistoryAnswer,
    HistoryQuery,
    HistorySeries,
    Series,
    Tier,
)
from osd.records.errors import OsdError
from osd.records.events import Event

_MAX_BUCKETS = 4500
"""Most buckets read for one answer."""
_MOST_S = 10 * 366 * 86_400


class BadRangeError(OsdError):
    """A range that no history has; the message names the field."""


def checked(query: HistoryQuery) -> HistoryQuery:
    """The query, if its range makes sense.

    Raises:
        BadRangeError: it does not.
    """
    if not (math.isfinite(query.from_s) and math.isfinite(query.to_s)):
        raise BadRangeError("from and to must be seconds since the epoch")
    if query.from_s >= query.to_s:
        raise BadRangeError(f"from ({query.from_s:g}) must be before to ({query.to_s:g})")
    if query.to_s - query.from_s > _MOST_S:
        raise BadRangeError("the range is longer than ten years; the history keeps one year: choose a later 'from'")
    if query.step_s < 0 or (query.step_s and (query.to_s - query.from_s) / query.step_s > 10 * MAX_POINTS):
        raise BadRangeError(
            f"step ({query.step_s}) gives more than {10 * MAX_POINTS} points; choose a larger one, or 0"
        )
    return query


def tier_of(query: HistoryQuery, now_s: float) -> Tier:
    """The finest tier that reaches back to the range's start and has no more buckets in it than are read at once."""
    for tier in TIERS:
        reaches = query.from_s >= now_s - tier.step_s * tier.num_buckets
        if reaches and (query.to_s - query.from_s) / tier.step_s <= _MAX_BUCKETS:
            return tier
    return TIERS[-1]


def step_of(query: HistoryQuery, tier: Tier) -> int:
    """Seconds a point: a multiple of the tier's step, at most MAX_POINTS points."""
    least = max((query.to_s - query.from_s) / MAX_POINTS, query.step_s, tier.step_s)
    return math.ceil(least / tier.step_s) * tier.step_s


def answer(query: HistoryQuery, tier: Tier, buckets: Sequence[Bucket], events: Sequence[Event]) -> HistoryAnswer:
    """Merge buckets into the points and series that the query asks for."""
    step_s = step_of(query, tier)
    first_s = query.from_s // step_s * step_s
    num_points = math.floor((query.to_s - first_s) / step_s) + 1
    points: dict[tuple[str | int, ...], dict[int, Figures]] = {}
    domains: set[str] = set()
    drafters: Figures = {}
    for bucket in buckets:
        at = math.floor((bucket.at_s - first_s) / step_s)
        if not 0 <= at < num_points:
            continue
        for series, figures in bucket.rows.items():
            if series.domain:
                domains.add(series.domain)
            if not _is_wanted(series, query):
                continue
            if rounds := figures.get("rounds"):
                drafters[series.drafter] = drafters.get(series.drafter, 0.0) + rounds
            sums = points.setdefault(_key(series, query.by), {}).setdefault(at, {})
            for name, value in figures.items():
                sums[name] = sums.get(name, 0.0) + value
    return HistoryAnswer(
        from_s=query.from_s,
        to_s=query.to_s,
        step_s=step_s,
        times_s=[first_s + at * step_s for at in range(num_points)],
        series=[_columns(query.by, key, sums, num_points) for key, sums in _bounded(points, query.by)],
        marks=[{"at_s": one.at_s, "kind": one.kind, "message": one.message, "data": one.data} for one in events],
        domains=sorted(domains),
        drafters=drafters,
    )


def _is_wanted(series: Series, query: HistoryQuery) -> bool:
    """What an engine or the trainer counts without dividing it by domain belongs to no domain's series."""
    if query.domain:
        return series.domain == query.domain
    return bool(series.domain) if "domain" in query.by else True


def _key(series: Series, by: tuple[By, ...]) -> tuple[str | int, ...]:
    return tuple(getattr(series, name) for name in by)


def _bounded(
    points: dict[tuple[str | int, ...], dict[int, Figures]], by: tuple[By, ...]
) -> list[tuple[tuple[str | int, ...], dict[int, Figures]]]:
    """Series in order of their keys; beyond MAX_SERIES those with the fewest rounds are summed."""

    def rounds(key: tuple[str | int, ...]) -> float:
        return sum(figures.get("rounds", 0.0) for figures in points[key].values())

    largest = sorted(points, key=rounds, reverse=True)
    kept = largest if len(largest) <= MAX_SERIES else largest[: MAX_SERIES - 1]
    result = [(key, points[key]) for key in sorted(kept)]
    if rest := largest[len(kept) :]:
        summed: dict[int, Figures] = {}
        for key in rest:
            for at, figures in points[key].items():
                for name, value in figures.items():
                    summed.setdefault(at, {})[name] = summed.get(at, {}).get(name, 0.0) + value
        result.append((tuple(0 if name == "version" else "other" for name in by), summed))
    return result


def _columns(
    by: tuple[By, ...], key: tuple[str | int, ...], sums: dict[int, Figures], num_points: int
) -> HistorySeries:
    names = sorted({name for figures in sums.values() for name in figures})
    columns: dict[str, list[float | None]] = {name: [None] * num_points for name in names}
    for at, figures in sums.items():
        for name, value in figures.items():
            columns[name][at] = round(value, 6)
    return HistorySeries(of=dict(zip(by, key, strict=True)), figures=columns)
