"""The operator's history: what was counted in each stretch of time, by domain, drafter version and engine.

All figures are sums, so that stretches, engines and domains merge by adding; ratios are taken when they are read. A
*level* (a loss, say), which is not additive, is kept as the sum of its samples beside the number of samples.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

Figures = dict[str, float]
"""Name to sum."""
SAMPLES = ".samples"
"""The number of samples of level `x` is the figure `x.samples`."""
COUNTS = {
    "queries": "Queries that finished.",
    "rounds": "Rounds, plain ones included.",
    "plain_rounds": "Rounds in which nothing was proposed.",
    "proposed": "Tokens proposed.",
    "accepted": "Tokens accepted.",
    "committed": "Tokens committed by rounds.",
    "output_tokens": "Output tokens of finished queries.",
    "decode_ms": "Milliseconds in rounds, drafting and verifying; a pass over several rows is shared among them.",
    "plain_ms": "Milliseconds that plain decoding would have taken for the committed tokens, by the measured costs.",
    "dropped": "Outcomes that were lost.",
    "paused_ms": "Milliseconds that the engine paused while it had work, so that training could run.",
    "trained_ms": "Milliseconds that the trainer spent in training, without waits for busy engines.",
}
"""Figures that add up, with their meaning. `proposed_at_3` and `accepted_at_3` count tokens at position 3 of proposals
(from 1), and `length_2` the rounds that proposed 2 tokens."""
LEVELS = {
    "utilisation": "Share of the time that the engine was busy, 0 to 1.",
    "running": "Queries in a row.",
    "waiting": "Queries waiting for a row.",
    "loss": "The trainer's loss.",
    "learning_rate": "The trainer's learning rate.",
    "replay_bytes": "Bytes in the trainer's replay.",
    "stream_lag": "Outcomes recorded and not yet read by the trainer.",
    "worth": "Share of trainer.max_serving_cost that the engine is asked for.",
}
"""Figures of which the mean is shown, with their meaning."""


class Series(msgspec.Struct, frozen=True, array_like=True, order=True):
    """What a row of figures belongs to. An empty field: what is counted is not divided by it.

    Example: `Series("code", "feature", 3, "engine-1")`
    """

    domain: str = ""
    drafter: str = ""
    version: int = 0
    engine: str = ""


class Bucket(msgspec.Struct, array_like=True):
    """The figures of one stretch of time."""

    at_s: float
    """When it begins: wall clock, seconds since the epoch, a multiple of its tier's step."""
    rows: dict[Series, Figures] = {}

    def add(self, series: Series, figures: Figures) -> None:
        """Add figures to a series."""
        row = self.rows.setdefault(series, {})
        for name, value in figures.items():
            row[name] = row.get(name, 0.0) + value

    def merge(self, other: Bucket) -> None:
        """Add all figures of another bucket."""
        for series, figures in other.rows.items():
            self.add(series, figures)

    def merged_with(self, other: Bucket | None) -> Bucket:
        """A new bucket: the sum of both."""
        merged = Bucket(self.at_s, {series: dict(figures) for series, figures in self.rows.items()})
        if other is not None:
            merged.merge(other)
        return merged


@dataclass(frozen=True, slots=True)
class Tier:
    """One resolution of the history."""

    name: Literal["seconds", "minutes", "hours"]
    step_s: int
    num_buckets: int
    """Most buckets kept, the newest ones."""
    bytes_share: float
    """Most of the history's bytes that this tier takes."""

    def start_of(self, at_s: float) -> float:
        """When the bucket that holds this moment begins."""
        return at_s // self.step_s * self.step_s


TIERS = (
    Tier("seconds", 5, 780, 0.25),  # an hour, and five minutes for a range of an hour that was chosen a moment ago
    Tier("minutes", 60, 10_140, 0.45),  # a week
    Tier("hours", 3600, 8_784, 0.25),  # a year
)
"""From the finest to the coarsest; what is left of the bytes is for marks."""

By = Literal["domain", "drafter", "version", "engine"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryQuery:
    """What to read of the history."""

    from_s: float
    to_s: float
    step_s: int = 0
    """Seconds a point; 0: chosen so that the range has at most `MAX_POINTS` points."""
    by: tuple[By, ...] = ()
    """What keeps series apart; they are summed over everything else."""
    domain: str = ""
    """Only this domain; empty: all."""


MAX_POINTS = 1000
"""Most points in time that an answer has."""
MAX_SERIES = 40
"""Most series that an answer has; those with the fewest rounds are summed as `other`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HistorySeries:
    """One series of an answer."""

    of: dict[str, str | int]
    """The fields that the query asked for. Example: `{"domain": "code", "version": 3}`"""
    figures: dict[str, list[float | None]]
    """Figure to its sum at each point; None: nothing was counted then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryAnswer:
    """The history in a range of time."""

    from_s: float
    to_s: float
    step_s: int
    times_s: list[float]
    """When each point begins."""
    series: list[HistorySeries]
    marks: list[dict[str, Any]] = field(default_factory=list)
    """The events in the range, oldest first (see `osd.records.events.Event`)."""
    domains: list[str] = field(default_factory=list)
    """Every domain with a figure in the range."""
    drafters: dict[str, float] = field(default_factory=dict)
    """Drafter to the rounds in which it proposed, of the domain that was asked for or of all; the empty name: plain
    rounds."""
    message: str = ""
    """What the reader has to know, such as that Redis is away; empty if all is well."""
