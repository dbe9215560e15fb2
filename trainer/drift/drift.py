"""Watches each domain's acceptance for drift: traffic that the drafter is no longer, or not yet, trained on.

A fall is looked for in the rounds of all arms, as users feel it. A rise, which means other traffic as well, is looked
for in the learned drafter's rounds alone, and from each new version anew: neither answers that the `suffix` lookup has
learnt nor training that succeeds are drift.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from osd.records.drafter_id import DrafterId, kind_of
from osd.records.outcome import Outcome
from osd.records.status import ALL_TRAFFIC, DomainDrift, DriftState
from trainer.drift.shift import Direction, ShiftDetector

_MAX_DOMAINS = 64
_LEAST_ROUNDS = 3
"""Queries with fewer rounds that proposed say next to nothing."""
_WARNING_QUERIES = 40
"""A warning that no drift follows ends after so many queries."""
_DRIFT_QUERIES = 500
"""Drift that no published version ends is what is normal after so many queries."""


class Drifted(NamedTuple):
    """A domain's acceptance changed for good."""

    domain: str
    direction: Direction
    window: DomainDrift

    @property
    def message(self) -> str:
        """What the operator is told."""
        where = "acceptance" if self.domain == ALL_TRAFFIC else f"acceptance of domain {self.domain!r}"
        change = f"{'rose' if self.direction == 'up' else 'fell'} from {self.window.before:.2f} to"
        return f"{where} {change} {self.window.recent:.2f} over {self.window.queries} queries"

    @property
    def figures(self) -> dict[str, float]:
        """The figures that the event carries."""
        return {"queries": float(self.window.queries), "before": self.window.before, "recent": self.window.recent}


@dataclass(slots=True)
class _Window:
    """Queries since the last warning."""

    queries: int = 0
    accepted: int = 0
    rounds: int = 0

    def add(self, accepted: int, rounds: int) -> None:
        """Add one query."""
        self.queries += 1
        self.accepted += accepted
        self.rounds += rounds


@dataclass(slots=True)
class _Domain:
    """One domain, or all traffic."""

    fall: ShiftDetector = field(default_factory=lambda: ShiftDetector("down"))
    rise: ShiftDetector = field(default_factory=lambda: ShiftDetector("up"))
    state: DriftState = "stable"
    window: _Window = field(default_factory=_Window)
    reference: float = 0.0
    """What the window is compared with."""
    drafter: DrafterId | None = None
    """The learned drafter in the newest query."""

    def settle(self) -> None:
        """What comes now is normal."""
        self.state, self.window, self.reference = "stable", _Window(), 0.0

    def as_json(self) -> dict[str, Any]:
        """JSON-serialisable."""
        return {
            "fall": self.fall.state(),
            "rise": self.rise.state(),
            "state": self.state,
            "window": asdict(self.window),
            "reference": self.reference,
            "drafter": self.drafter,
        }

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> _Domain:
        """What `as_json` returned."""
        drafter = state["drafter"]
        domain = cls(
            state=state["state"],
            window=_Window(**state["window"]),
            reference=state["reference"],
            drafter=None if drafter is None else DrafterId(*drafter),
        )
        domain.fall.restore(state["fall"])
        domain.rise.restore(state["rise"])
        return domain

    def report(self) -> DomainDrift:
        """The domain's part of the trainer's status."""
        rate = self.window.accepted / self.window.rounds if self.window.rounds else 0.0
        return DomainDrift(state=self.state, queries=self.window.queries, before=self.reference, recent=rate)


class DriftMonitor:
    """Takes every outcome once, and says when acceptance drifts."""

    def __init__(self) -> None:
        self._domains: dict[str, _Domain] = {}

    def add(self, outcome: Outcome) -> list[Drifted]:
        """Add one query; returns the drifts that it completes: of its domain, of all traffic, or none."""
        return [
            Drifted(name, direction, domain.report())
            for name, domain in ((name, self._known(name)) for name in (outcome.domain, ALL_TRAFFIC))
            if (direction := _observe(domain, outcome, is_all=name == ALL_TRAFFIC))
        ]

    def passed_gate(self) -> None:
        """A version was published that is better on recent queries: the response to drift has succeeded."""
        for domain in self._domains.values():
            if domain.state == "drift":
                domain.settle()

    def status(self) -> dict[str, DomainDrift]:
        """By domain, the least recently seen first."""
        return {name: domain.report() for name, domain in self._domains.items()}

    def state(self) -> dict[str, Any]:
        """JSON-serialisable: what is normal in each domain, and how far each detector is."""
        return {name: domain.as_json() for name, domain in self._domains.items()}

    def restore(self, state: dict[str, Any]) -> None:
        """What `state` returned."""
        self._domains = {name: _Domain.from_json(domain) for name, domain in state.items()}

    def _known(self, name: str) -> _Domain:
        """A domain, which becomes the most recent; beyond `_MAX_DOMAINS` the least recent one is forgotten."""
        domain = self._domains.pop(name, None) or _Domain()
        self._domains[name] = domain
        if len(self._domains) > _MAX_DOMAINS:
            del self._domains[next(iter(self._domains))]
        return domain


def _observe(domain: _Domain, outcome: Outcome, *, is_all: bool) -> Direction | None:
    """Add one query to a domain, or to all traffic; returns the direction of a drift that it completes.

    A domain's learned drafter is its own or the base drafter, whichever serves it; that of all traffic is the latter.
    """
    proposing, learned, last = [], [], None
    for one, drafter in zip(outcome.rounds, outcome.drafters(), strict=True):
        if drafter is None:
            continue
        proposing.append(one)
        if (drafter.name if is_all else kind_of(drafter.name)) == outcome.drafter_kind:
            learned.append(one)
            last = drafter
    if last is not None and last != domain.drafter:
        domain.drafter = last
        domain.rise.reset()
    if len(proposing) < _LEAST_ROUNDS:
        return None
    accepted, found = sum(one.accepted > 0 for one in proposing), None
    for detector, own in ((domain.fall, proposing), (domain.rise, learned)):
        if len(own) < _LEAST_ROUNDS:
            continue
        reference = detector.reference
        step = detector.add(sum(one.accepted > 0 for one in own), len(own))
        if domain.state == "stable" and (step.warns or step.alarms):
            domain.state, domain.reference, domain.window = "warning", reference, _Window()
        found = detector.direction if step.alarms else found
    domain.window.add(accepted, len(proposing))
    if found:
        domain.state = "drift"
        domain.fall.reset()
        domain.rise.reset()
    elif domain.window.queries > (_WARNING_QUERIES if domain.state == "warning" else _DRIFT_QUERIES):
        domain.settle()
    return found
