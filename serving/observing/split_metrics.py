"""Metrics of the domains that a drafter of their own serves."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client.core import GaugeMetricFamily, Metric

from osd.monitor.labels import Domains
from osd.records.status import VersionsStatus


def split_metrics(versions: Mapping[str, VersionsStatus], domains: Domains) -> Metric:
    """`osd_domain_own_drafter_version`; of domains that share a label the highest version."""
    highest: dict[str, int] = {}
    for domain, found in versions.items():
        label = domains.label(domain, is_active=False)
        highest[label] = max(highest.get(label, 0), found.confirmed or 0)
    meaning = "Version of a domain's own drafter that every engine may serve; 0: the base drafter serves the domain."
    family = GaugeMetricFamily("osd_domain_own_drafter_version", meaning, labels=("domain",))
    for label, version in highest.items():
        family.add_metric((label,), version)
    return family
