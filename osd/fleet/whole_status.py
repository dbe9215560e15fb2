"""Merges the status of several engines into one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

from osd.monitor.buckets import Figures
from osd.records.status import DrafterCounts, EngineStatus, ServedCounts


def whole_status(engines: Sequence[EngineStatus]) -> EngineStatus:
    """Sums of what can be added; of the rest, the first engine's, or what most engines say.

    Args:
        engines: at least one.
    """
    first = engines[0]
    counters: Counter[str] = Counter()
    by_version: dict[int, Counter[str]] = {}
    drafters: dict[tuple[str, int], DrafterCounts] = {}
    served: dict[tuple[str, str, int], Figures] = {}
    for one in engines:
        counters.update(one.counters)
        for version, counts in one.acceptance_by_version.items():
            by_version.setdefault(version, Counter()).update(counts)
        for drafter in one.drafters:
            key = (drafter.name, drafter.version)
            drafters[key] = _sum(drafters[key], drafter) if key in drafters else drafter
        for own in one.served:
            sums = served.setdefault((own.domain, own.drafter, own.version), {})
            for name, value in own.figures.items():
                sums[name] = sums.get(name, 0.0) + value
    ((version, _),) = Counter(one.drafter_version for one in engines).most_common(1)
    return replace(
        first,
        drafter_version=version,
        running=sum(one.running for one in engines),
        waiting=sum(one.waiting for one in engines),
        max_slots=sum(one.max_slots for one in engines),
        running_tokens=sum(one.running_tokens for one in engines),
        kept_tokens=sum(one.kept_tokens for one in engines),
        utilisation=fmean(one.utilisation for one in engines),
        uptime_s=max(one.uptime_s for one in engines),
        counters=dict(counters),
        acceptance_by_version={version: dict(counts) for version, counts in sorted(by_version.items())},
        drafters=tuple(drafters[key] for key in sorted(drafters)),
        served=tuple(
            ServedCounts(domain=domain, drafter=drafter, version=number, figures=served[domain, drafter, number])
            for domain, drafter, number in sorted(served)
        ),
    )


def _sum(one: DrafterCounts, other: DrafterCounts) -> DrafterCounts:
    return replace(
        one,
        rounds=one.rounds + other.rounds,
        proposed=one.proposed + other.proposed,
        accepted=one.accepted + other.accepted,
        committed=one.committed + other.committed,
    )
