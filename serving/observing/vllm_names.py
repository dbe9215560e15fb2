"""The same figures under vLLM's metric names (`server.vllm_metrics`), so that dashboards made for it show something."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from osd.records.status import EngineStatus

_COUNTERS = {
    "prompt_tokens": "prompt_tokens_total",
    "generation_tokens": "output_tokens_total",
    "prefix_cache_queries": "prompt_tokens_total",
    "prefix_cache_hits": "reused_tokens_total",
    "spec_decode_num_draft_tokens": "proposed_total",
    "spec_decode_num_accepted_tokens": "accepted_total",
}
"""vLLM's name to the engine's counter."""
_GAUGES = {"num_requests_running": "running", "num_requests_waiting": "waiting"}
_HISTOGRAMS = {
    "time_to_first_token_seconds": "osd_time_to_first_token_seconds",
    "inter_token_latency_seconds": "osd_time_per_output_token_seconds",
    "request_time_per_output_token_seconds": "osd_time_per_output_token_seconds",
    "e2e_request_latency_seconds": "osd_query_seconds",
    "request_queue_time_seconds": "osd_query_queue_seconds",
    "request_prefill_time_seconds": "osd_query_prefill_seconds",
    "request_decode_time_seconds": "osd_query_decode_seconds",
    "request_prompt_tokens": "osd_query_prompt_tokens",
    "request_generation_tokens": "osd_query_output_tokens",
}
"""vLLM's name to the histogram's. Latency between tokens: vLLM observes each token's, osd its mean over a query."""
_REASONS = {"stop": "stop", "length": "length", "cancelled": "abort"}
"""How a query ended to vLLM's word; what ended with an error is no success."""


def vllm_metrics(engine: EngineStatus, model_name: str, accepted_at: Mapping[int, float]) -> Iterator[Metric]:
    """Counters and gauges of the engine; `model_name` and `engine` are labels, as there.

    Args:
        engine: its status.
        model_name: for the label.
        accepted_at: position in the proposal, from 1, to the tokens accepted there.
    """
    labels, key = ("model_name", "engine"), (model_name, "0")
    for name, own in _GAUGES.items():
        gauge = GaugeMetricFamily(f"vllm:{name}", f"osd's {own} queries.", labels=labels)
        gauge.add_metric(key, getattr(engine, own))
        yield gauge
    meaning = "osd's cached tokens of running queries; 1: as many as fit."
    used = GaugeMetricFamily("vllm:kv_cache_usage_perc", meaning, labels=labels)
    used.add_metric(key, engine.running_tokens / (engine.max_slots * engine.context_tokens))
    yield used
    counters = dict(engine.counters)
    counters["drafts"] = counters.get("rounds_total", 0.0) - counters.get("plain_rounds_total", 0.0)
    for name, own in {**_COUNTERS, "spec_decode_num_drafts": "drafts"}.items():
        counter = CounterMetricFamily(f"vllm:{name}", f"osd's {own}.", labels=labels)
        counter.add_metric(key, counters.get(own, 0.0))
        yield counter
    at_position = CounterMetricFamily(
        "vllm:spec_decode_num_accepted_tokens_per_pos",
        "osd's accepted tokens by position, from 0.",
        labels=(*labels, "position"),
    )
    for position, accepted in sorted(accepted_at.items()):
        at_position.add_metric((*key, str(position - 1)), accepted)
    yield at_position


@dataclass(frozen=True, slots=True)
class VllmQueries(Collector):
    """What `QueryMetrics` and `HttpMetrics` observe, under vLLM's names.

    Args:
        registry: of those.
        model_name: a label, as there.
    """

    registry: CollectorRegistry
    model_name: str

    def collect(self) -> Iterator[Metric]:
        """Histograms with the same buckets, and queries by how they ended."""
        labels = {"model_name": self.model_name, "engine": "0"}
        found = {family.name: family for family in self.registry.collect()}
        for name, own in _HISTOGRAMS.items():
            family = found[own]
            renamed = Metric(f"vllm:{name}", f"{own}: {family.documentation}", "histogram")
            for sample in family.samples:
                ending = sample.name.removeprefix(own)
                renamed.add_sample(f"{renamed.name}{ending}", {**labels, **sample.labels}, sample.value)
            yield renamed
        ended: Counter[str] = Counter()
        for sample in found["osd_finished_queries"].samples:
            if reason := _REASONS.get(sample.labels["reason"]):
                ended[reason] += int(sample.value)
        success = CounterMetricFamily(
            "vllm:request_success", "Queries that ended without an error.", labels=(*labels, "finished_reason")
        )
        for reason, count in sorted(ended.items()):
            success.add_metric((*labels.values(), reason), count)
        yield success
