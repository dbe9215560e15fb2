"""Metrics of what the engine served, by domain and drafter version, and by position in the proposal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from time import monotonic

from prometheus_client.core import CounterMetricFamily, Metric

from osd.monitor.buckets import Figures
from osd.monitor.labels import Domains
from osd.records.status import ServedCounts

_MAX_SERIES = 2048
"""Of the engines' totals that are remembered."""
_MAX_LABELS = 512
"""Of domain, drafter and version together: each publish makes a version, for every domain."""
_BY_DOMAIN = {
    "rounds": "Rounds in a domain; those without a drafter are plain.",
    "proposed": "Tokens proposed in a domain.",
    "accepted": "Of the tokens proposed in a domain, those that the target accepted.",
    "committed": "Tokens committed by a domain's rounds.",
    "output_tokens": "Output tokens of a domain's finished queries.",
}
_BY_POSITION = {
    "proposed": "Tokens proposed at a position of the proposal, counted from 1.",
    "accepted": "Of the tokens proposed at a position, those that the target accepted.",
}
_BY_LENGTH = "Rounds by the number of tokens proposed; 0: plain."


class ServedMetrics:
    """Counters by domain, by position and by speculation length.

    What the engines' totals have grown by since they were last taken is added to the counter of the label that the
    domain has now. So a counter never falls or leaps where an engine forgets a series or leaves, or where a domain gets
    another label: Prometheus would take the one for a restart, and the other for traffic.

    Args:
        max_domains: domains that are labels of their own; the others are `other`.
        clock: monotonic seconds.
    """

    def __init__(self, max_domains: int, *, clock: Callable[[], float] = monotonic) -> None:
        self.domains = Domains(max_domains, on_forgotten=self._forget, clock=clock)
        self._last: dict[tuple[str, str, int], Figures] = {}
        """Domain, drafter and version to their totals; least recently changed first."""
        self._by_domain: dict[tuple[str, str, int], Figures] = {}
        """The same of labels to what is exported; least recently changed first."""
        self._by_number: dict[str, dict[int, float]] = {"proposed_at": {}, "accepted_at": {}, "length": {}}
        """Counts by position in the proposal, and by length."""

    def take(self, served: Sequence[ServedCounts]) -> None:
        """Take the totals of all engines as they are now."""
        for one in served:
            series = one.domain, one.drafter, one.version
            before = self._last.get(series, {})
            if one.figures == before:
                continue
            self._last.pop(series, None)
            self._last[series] = one.figures
            grown = {name: max(value - before.get(name, 0.0), 0.0) for name, value in one.figures.items()}
            labels = self.domains.label(one.domain), one.drafter, one.version
            self._by_domain[labels] = self._with(self._by_domain.pop(labels, {}), grown)
        for kept, most in ((self._last, _MAX_SERIES), (self._by_domain, _MAX_LABELS)):
            while len(kept) > most:
                del kept[next(iter(kept))]

    def metrics(self) -> Iterator[Metric]:
        """The counters."""
        for name, meaning in _BY_DOMAIN.items():
            family = CounterMetricFamily(f"osd_domain_{name}", meaning, labels=("domain", "drafter", "drafter_version"))
            for (domain, drafter, version), figures in sorted(self._by_domain.items()):
                if name in figures:
                    family.add_metric((domain, drafter, str(version)), figures[name])
            yield family
        for name, meaning in _BY_POSITION.items():
            yield self._family(f"osd_{name}_at_position", meaning, "position", f"{name}_at")
        yield self._family("osd_rounds_by_length", _BY_LENGTH, "length", "length")

    def accepted_at(self) -> dict[int, float]:
        """Position in the proposal, from 1, to the tokens accepted there."""
        accepted = self._by_number["accepted_at"]
        return {position: accepted.get(position, 0.0) for position in sorted(self._by_number["proposed_at"])}

    def _with(self, counts: Figures, grown: Figures) -> Figures:
        """A label's counts with what was added; what is counted by position and length is added there."""
        for name, value in grown.items():
            kind, _, number = name.rpartition("_")
            if name in _BY_DOMAIN:
                counts[name] = counts.get(name, 0.0) + value
            elif kind in self._by_number:
                of = self._by_number[kind]
                of[int(number)] = of.get(int(number), 0.0) + value
        return counts

    def _forget(self, domain: str) -> None:
        for key in [one for one in self._by_domain if one[0] == domain]:
            del self._by_domain[key]

    def _family(self, name: str, meaning: str, label: str, kind: str) -> Metric:
        family = CounterMetricFamily(name, meaning, labels=(label,))
        for number, count in sorted(self._by_number[kind].items()):
            family.add_metric((str(number),), count)
        return family
