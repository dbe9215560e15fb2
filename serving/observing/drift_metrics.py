"""Metrics of drift by domain, as the trainer's detectors report it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

from prometheus_client.core import GaugeMetricFamily, Metric

from osd.monitor.labels import Domains
from osd.records.status import ALL_TRAFFIC, DomainDrift, DriftState

_STATES = get_args(DriftState)
"""From the best to the worst."""


def drift_metrics(drift: Mapping[str, DomainDrift], domains: Domains) -> Metric:
    """`osd_drift_state`; domains that share a label show the worst of their states."""
    worst: dict[str, int] = {}
    for domain, found in drift.items():
        label = domain if domain == ALL_TRAFFIC else domains.label(domain, is_active=False)
        worst[label] = max(worst.get(label, 0), _STATES.index(found.state))
    meaning = "1 for the state that a domain's drift detector is in; domain *: all traffic together."
    family = GaugeMetricFamily("osd_drift_state", meaning, labels=("domain", "state"))
    for label, level in worst.items():
        for state in _STATES:
            family.add_metric((label, state), float(state == _STATES[level]))
    return family
