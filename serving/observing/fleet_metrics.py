"""Gauges of each engine by itself, from its latest report. Sums over all engines are in the other metrics."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from prometheus_client.core import GaugeMetricFamily, Metric

from osd.fleet.heartbeat import EngineReport

_GAUGES: dict[str, tuple[str, Callable[[EngineReport], float]]] = {
    "silent_seconds": (
        "Seconds since one engine's latest report, as far as the clocks of both machines agree.",
        lambda report: max(time.time() - report.at_s, 0.0),
    ),
    "device_used_bytes": (
        "Bytes in use on one engine's device, by any process; on a CPU, of its node's memory.",
        lambda report: report.device_used_bytes,
    ),
    "device_bytes": (
        "Bytes of memory that one engine's device has; on a CPU, its node.",
        lambda report: report.device_bytes,
    ),
    "utilisation": ("Share of the time that one engine is busy.", lambda report: report.utilisation),
    "running_queries": ("Queries that are in a slot of one engine now.", lambda report: report.running),
    "waiting_queries": ("Queries that wait for a slot of one engine now.", lambda report: report.waiting),
    "drafter_version": ("Number of the version that drafts in one engine.", lambda report: report.drafter.version),
}


def fleet_metrics(reports: Sequence[EngineReport]) -> Iterator[Metric]:
    """The gauges, labelled by `engine`. Engines that have said nothing for 15 s are not among the reports."""
    for name, (meaning, value_of) in _GAUGES.items():
        family = GaugeMetricFamily(f"osd_engine_{name}", meaning, labels=("engine",))
        for report in reports:
            family.add_metric((report.engine_id,), value_of(report))
        yield family
