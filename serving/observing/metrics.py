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

from collections.abc import Iterator, Mapping, Sequence
from typing import get_args

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from osd.config.settings import Config
from osd.fleet.heartbeat import EngineReport
from osd.io import recorder
from osd.meters import counters
from osd.records.events import EventKind
from osd.records.status import (
    EngineStatus,
    ServiceStatus,
    SpareStatus,
    TrainerState,
    TrainerStatus,
    VersionsStatus,
)
from serving.observing.drift_metrics import drift_metrics
from serving.observing.fleet_metrics import fleet_metrics
from serving.observing.http_metrics import HttpMetrics
from serving.observing.query_metrics import QueryMetrics
from serving.observing.served_metrics import ServedMetrics
from serving.observing.split_metrics import split_metrics
from serving.observing.vllm_names import VllmQueries, vllm_metrics

_MEANINGS = counters.MEANINGS | recorder.MEANINGS
_BY_VERSION = {
    "rounds": "Rounds in which the drafter version proposed; plain rounds are of no version.",
    "proposed": "Tokens that the drafter version proposed.",
    "accepted": "Of the tokens that the drafter version proposed, those that the target accepted.",
    "committed": "Tokens committed by the drafter version's rounds: accepted, and one more in each.",
}


class Metrics:
    """All metrics of one app, in a registry of its own.

    Args:
        config: sections `server` and `monitor` are read.
        model_name: for the metrics under vLLM's names.
    """

    def __init__(self, config: Config, model_name: str) -> None:
        self._registry, observed = CollectorRegistry(), CollectorRegistry()
        self._service = _ServiceCollector(config, model_name)
        self._registry.register(self._service)
        ProcessCollector(registry=self._registry, namespace="osd_server")
        self.http = HttpMetrics(observed)
        self.queries = QueryMetrics(observed, config.monitor.max_domains)
        self._registry.register(observed)
        if config.server.vllm_metrics:
            self._registry.register(VllmQueries(observed, model_name))

    def exposition(self, status: ServiceStatus | None, engines: Sequence[EngineReport] = ()) -> bytes:
        """Prometheus text. Without a status (no engine) the engine's metrics are absent, not zero.

        Args:
            status: of the whole service.
            engines: the latest report of each engine.
        """
        self._service.status, self._service.engines = status, engines
        return generate_latest(self._registry)


class _ServiceCollector(Collector):
    """Turns the latest status into metrics."""

    def __init__(self, config: Config, model_name: str) -> None:
        self.status: ServiceStatus | None = None
        self.engines: Sequence[EngineReport] = ()
        self._served = ServedMetrics(config.monitor.max_domains)
        self._vllm_name = model_name if config.server.vllm_metrics else ""

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
        if status.versions is not None:
            yield from _version_metrics(status.versions)
            yield _event_metric(status.events)
        if status.stream is not None:
            written = "Bytes that all engines together wrote to the outcome stream lately, in a second."
            yield GaugeMetricFamily("osd_stream_bytes_per_second", written, value=status.stream.bytes_per_s)
            share = "Share of the queries whose outcomes engines record; below 1 while the stream is near its limit."
            yield GaugeMetricFamily("osd_record_share", share, value=status.stream.record_share)
        if status.spare is not None:
            yield from _spare_metrics(status.spare)
        if status.engine is not None:
            yield from _engine_metrics(status.engine)
            self._served.take(status.engine.served)
            yield from self._served.metrics()
            if self._vllm_name:
                yield from vllm_metrics(status.engine, self._vllm_name, self._served.accepted_at())
        yield from fleet_metrics(self.engines)
        if status.trainer is not None and status.trainer.state != "off":
            yield from _trainer_metrics(status.trainer)
            yield drift_metrics(status.trainer.drift, self._served.domains)
        yield split_metrics(status.domains, self._served.domains)


def _engine_metrics(engine: EngineStatus) -> Iterator[Metric]:
    yield GaugeMetricFamily("osd_running_queries", "Queries that are in a slot now.", value=engine.running)
    yield GaugeMetricFamily("osd_waiting_queries", "Queries that wait for a slot now.", value=engine.waiting)
    yield GaugeMetricFamily("osd_slots", "Queries that can be in a slot at once.", value=engine.max_slots)
    held = "Tokens whose keys and values slots hold: of running queries, or kept for those that begin alike."
    cached = GaugeMetricFamily("osd_cached_tokens", held, labels=("use",))
    cached.add_metric(("running",), engine.running_tokens)
    cached.add_metric(("kept",), engine.kept_tokens)
    yield cached
    room = engine.max_slots * engine.context_tokens
    yield GaugeMetricFamily("osd_cache_room_tokens", "Tokens for which the slots have room.", value=room)
    chosen = "Tokens proposed in the latest round; 0: plain."
    yield GaugeMetricFamily("osd_speculation_tokens", chosen, value=engine.speculation_length)
    yield GaugeMetricFamily("osd_utilisation", "Share of the time that the engine is busy.", value=engine.utilisation)
    yield GaugeMetricFamily("osd_drafter_version", "Number of the version that drafts.", value=engine.drafter_version)
    for name, count in engine.counters.items():
        yield CounterMetricFamily(f"osd_{name}", _MEANINGS[name], value=count)
    for name, meaning in _BY_VERSION.items():
        family = CounterMetricFamily(f"osd_drafter_{name}", meaning, labels=("drafter_version",))
        for version, counts in engine.acceptance_by_version.items():
            family.add_metric((str(version),), counts[name])
        yield family


def _version_metrics(versions: VersionsStatus) -> Iterator[Metric]:
    roll_backs = "Drafter versions rolled back, by the referee or by hand."
    yield CounterMetricFamily("osd_roll_backs", roll_backs, value=versions.roll_backs)
    manual = "Of the roll-backs, those by hand: admin page, admin API or `osd drafter rollback`."
    yield CounterMetricFamily("osd_manual_roll_backs", manual, value=versions.manual_roll_backs)
    if versions.confirmed is not None:
        meaning = "The drafter version that every engine may serve."
        yield GaugeMetricFamily("osd_confirmed_version", meaning, value=versions.confirmed)
    meaning = "Engines that try a drafter version now, before the others get it."
    yield GaugeMetricFamily("osd_canary_engines", meaning, value=len(versions.canaries))


def _event_metric(num_events: Mapping[str, int]) -> Metric:
    told = "Events since the supervisor started, by kind; the gate's decisions are publish and refuse."
    events = CounterMetricFamily("osd_events", told, labels=("kind",))
    for kind in get_args(EventKind):
        events.add_metric((kind,), num_events.get(kind, 0))
    return events


def _spare_metrics(spare: SpareStatus) -> Iterator[Metric]:
    share = "Share of their time that busy engines on the trainer's device are asked to leave to it now."
    yield GaugeMetricFamily("osd_training_granted_share", share, value=spare.share)
    cost = "Share of the last minute that the engine which paused most for training paused while it had work."
    yield GaugeMetricFamily("osd_training_serving_cost", cost, value=spare.serving_cost)
    neighbours = "Engines that share the trainer's device."
    yield GaugeMetricFamily("osd_training_neighbours", neighbours, value=len(spare.neighbours))


def _trainer_metrics(trainer: TrainerStatus) -> Iterator[Metric]:
    steps = "Optimizer steps of the trainer; its checkpoint carries them over a restart."
    yield CounterMetricFamily("osd_trainer_steps", steps, value=trainer.steps)
    seconds = "Seconds that the trainer spent in training, without waits for busy engines."
    yield CounterMetricFamily("osd_training_seconds", seconds, value=trainer.training_s)
    tokens = "Token positions that the trainer has trained on, repetitions included."
    yield CounterMetricFamily("osd_trainer_tokens", tokens, value=trainer.trained_tokens)
    state = GaugeMetricFamily("osd_trainer_state", "1 for the state that the trainer is in.", labels=("state",))
    for name in get_args(TrainerState):
        state.add_metric((name,), float(name == trainer.state))
    yield state
    gauges: dict[str, tuple[str, float | None]] = {
        "trainer_loss": ("The trainer's latest loss, of the kind that trainer.loss names.", trainer.loss),
        "trainer_learning_rate": ("The learning rate of the trainer's latest step.", trainer.learning_rate),
        "trainer_worth": ("Share of trainer.max_serving_cost that training is worth now.", trainer.worth),
        "trainer_replay_bytes": ("Bytes of outcomes in the trainer's replay.", trainer.replay_bytes),
        "trainer_published_version": ("The version that the trainer descends from.", trainer.published_version),
        "trainer_gate_candidate": (
            "Held-out acceptance length of the last candidate, in tokens a round.",
            trainer.gate.get("length"),
        ),
        "trainer_gate_serving": (
            "Held-out acceptance length of the version it was compared with.",
            trainer.gate.get("serving_length"),
        ),
        "stream_lag_outcomes": ("Outcomes in the stream that the trainer has not read yet.", trainer.stream_lag),
    }
    for name, (meaning, value) in gauges.items():
        if value is not None:
            yield GaugeMetricFamily(f"osd_{name}", meaning, value=value)
