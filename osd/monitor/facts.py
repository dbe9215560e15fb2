"""What alert rules look at: the trainer's status, the engines, and the history of the last minutes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from osd.monitor.buckets import Bucket, Figures
from osd.records.events import Event
from osd.records.status import TrainerStatus

MIN_PROPOSED = 100
"""Rules about acceptance ignore windows with fewer proposed tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """The state of the service at one moment."""

    at_s: float
    trainer: TrainerStatus | None = None
    """None: it does not answer."""
    engines_away: tuple[str, ...] = ()
    """Engines that were there and do not answer."""
    steps_changed_s: float = 0.0
    """When the trainer last made a step."""
    gate_decided_s: float = 0.0
    """When the gate last decided."""
    buckets: tuple[Bucket, ...] = ()
    """The history of the last day by minutes, oldest first."""
    events: tuple[Event, ...] = ()
    """The events of the last day, oldest first."""
    drifting: Mapping[str, str] = field(default_factory=dict)
    """Domains that drift, each with its detector's message."""

    def sums(self, window_s: float) -> dict[str, Figures]:
        """Domain to its figures in the last seconds."""
        return sums_by_domain(one for one in self.buckets if one.at_s >= self.at_s - window_s)

    def events_of(self, kind: str, window_s: float) -> list[Event]:
        """Events of a kind in the last seconds."""
        return [one for one in self.events if one.kind == kind and one.at_s >= self.at_s - window_s]


def sums_by_domain(buckets: Iterable[Bucket]) -> dict[str, Figures]:
    """Domain to the sums of its figures; what belongs to no domain is under the empty name."""
    sums: dict[str, Figures] = {}
    for bucket in buckets:
        for series, figures in bucket.rows.items():
            of = sums.setdefault(series.domain, {})
            for name, value in figures.items():
                of[name] = of.get(name, 0.0) + value
    return sums
