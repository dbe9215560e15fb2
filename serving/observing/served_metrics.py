"""Metrics of what the engine served, by domain and drafter version, and by position in the proposal."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, Metric

from osd.monitor.labels import Domains
from osd.records.status import ServedCounts

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


def served_metrics(served: Iterable[ServedCounts], domains: Domains) -> Iterator[Metric]:
    """Counters by domain, by position and by speculation length."""
    by_domain: defaultdict[tuple[str, str, str, str], float] = defaultdict(float)
    by_position: defaultdict[tuple[str, str], float] = defaultdict(float)
    by_length: defaultdict[str, float] = defaultdict(float)
    for one in served:
        domain = domains.label(one.domain)
        for name, value in one.figures.items():
            kind, _, position = name.rpartition("_")
            if name in _BY_DOMAIN:
                by_domain[name, domain, one.drafter, str(one.version)] += value
            elif kind in ("proposed_at", "accepted_at"):
                by_position[kind.removesuffix("_at"), position] += value
            elif kind == "length":
                by_length[position] += value
    for name, meaning in _BY_DOMAIN.items():
        labels = ("domain", "drafter", "drafter_version")
        yield _family(
            f"osd_domain_{name}", meaning, labels, {key[1:]: v for key, v in by_domain.items() if key[0] == name}
        )
    for name, meaning in _BY_POSITION.items():
        values: dict[tuple[str, ...], float] = {key[1:]: v for key, v in by_position.items() if key[0] == name}
        yield _family(f"osd_{name}_at_position", meaning, ("position",), values)
    meaning = "Rounds by the number of tokens proposed; 0: plain."
    lengths: dict[tuple[str, ...], float] = {(length,): value for length, value in by_length.items()}
    yield _family("osd_rounds_by_length", meaning, ("length",), lengths)


def _family(name: str, meaning: str, labels: tuple[str, ...], values: dict[tuple[str, ...], float]) -> Metric:
    family = CounterMetricFamily(name, meaning, labels=labels)
    for key, value in sorted(values.items()):
        family.add_metric(key, value)
    return family
