"""`/metrics`: the engine's and the trainer's counters in Prometheus' text format.

Only monotone counters and gauges are exported; compute ratios in PromQL, over any window and by any label:

    acceptance rate          rate(osd_accepted_total[5m]) / rate(osd_proposed_total[5m])
    acceptance length        rate(osd_committed_total[5m]) / rate(osd_rounds_total[5m])
    the same, by version     rate(osd_drafter_committed_total[5m]) / rate(osd_drafter_rounds_total[5m])
    output tokens a second   rate(osd_output_tokens_total[1m])
    time to first token      histogram_quantile(0.95, rate(osd_time_to_first_token_seconds_bucket[5m]))

A restarted engine counts from zero again, which `rate()` handles.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from osd.io import recorder
from osd.meters import counters
from osd.records.status import EngineStatus, ServiceStatus, TrainerStatus
from serving.observing.http_metrics import HttpMetrics

_MEANINGS = counters.MEANINGS | recorder.MEANINGS
_BY_VERSION = {
    "rounds": "Rounds in which the drafter version proposed; plain rounds are of no version.",
    "proposed": "Tokens that the drafter version proposed.",
    "accepted": "Of the tokens that the drafter version proposed, those that the target accepted.",
    "committed": "Tokens committed by the drafter version's rounds: accepted, and one more in each.",
}


class Metrics:
    """All metrics of one app, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._service = _ServiceCollector()
        self._registry.register(self._service)
        self.http = HttpMetrics(self._registry)

    def exposition(self, status: ServiceStatus | None) -> bytes:
        """Prometheus text. Without a status (no engine) the engine's metrics are absent, not zero."""
        self._service.status = status
        return generate_latest(self._registry)


class _ServiceCollector(Collector):
    """Turns the latest status into metrics."""

    def __init__(self) -> None:
        self.status: ServiceStatus | None = None

    def collect(self) -> Iterator[Metric]:
        status = self.status
        ready = status is not None and status.ready
        yield GaugeMetricFamily("osd_ready", "1 while queries are answered, 0 otherwise.", value=float(ready))
        if status is None:
            return
        restarts = CounterMetricFamily(
            "osd_restarts",
            "Restarts of an actor whose process had died; ray: of Ray and all actors.",
            labels=("actor",),
        )
        for actor, count in status.restarts.items():
            restarts.add_metric((actor,), count)
        yield restarts
        memory = "Resident memory of a process, in bytes; what processes share counts in each."
        resident = GaugeMetricFamily("osd_process_resident_bytes", memory, labels=("process",))
        for process, num_bytes in status.processes.items():
            resident.add_metric((process,), num_bytes)
        yield resident
        if status.engine is not None:
            yield from _engine_metrics(status.engine)
        if status.trainer is not None and status.trainer.state != "off":
            yield from _trainer_metrics(status.trainer)


def _engine_metrics(engine: EngineStatus) -> Iterator[Metric]:
    yield GaugeMetricFamily("osd_running_queries", "Queries that are in a slot now.", value=engine.running)
    yield GaugeMetricFamily("osd_waiting_queries", "Queries that wait for a slot now.", value=engine.waiting)
    yield GaugeMetricFamily("osd_drafter_version", "Number of the version that drafts.", value=engine.drafter_version)
    for name, count in engine.counters.items():
        yield CounterMetricFamily(f"osd_{name}", _MEANINGS[name], value=count)
    for name, meaning in _BY_VERSION.items():
        family = CounterMetricFamily(f"osd_drafter_{name}", meaning, labels=("drafter_version",))
        for version, counts in engine.acceptance_by_version.items():
            family.add_metric((str(version),), counts[name])
        yield family


def _trainer_metrics(trainer: TrainerStatus) -> Iterator[Metric]:
    steps = "Optimizer steps of the trainer; its checkpoint carries them over a restart."
    yield CounterMetricFamily("osd_trainer_steps", steps, value=trainer.steps)
    tokens = "Token positions that the trainer has trained on, repetitions included."
    yield CounterMetricFamily("osd_trainer_tokens", tokens, value=trainer.trained_tokens)
    if trainer.stream_lag is not None:
        lag = "Outcomes in the stream that the trainer has not read yet."
        yield GaugeMetricFamily("osd_stream_lag_outcomes", lag, value=trainer.stream_lag)
