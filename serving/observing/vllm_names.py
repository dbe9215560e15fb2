"""The same figures under vLLM's metric names (`server.vllm_metrics`), so that dashboards made for it show something."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from osd.records.status import EngineStatus

_COUNTERS = {
    "prompt_tokens": "prompt_tokens_total",
    "generation_tokens": "output_tokens_total",
    "spec_decode_num_draft_tokens": "proposed_total",
    "spec_decode_num_accepted_tokens": "accepted_total",
}
"""vLLM's name to the engine's counter."""
_GAUGES = {"num_requests_running": "running", "num_requests_waiting": "waiting"}


def vllm_metrics(engine: EngineStatus, model_name: str) -> Iterator[Metric]:
    """Counters and gauges of the engine; `model_name` and `engine` are labels, as there."""
    labels, key = ("model_name", "engine"), (model_name, "0")
    for name, own in _GAUGES.items():
        gauge = GaugeMetricFamily(f"vllm:{name}", f"osd's {own} queries.", labels=labels)
        gauge.add_metric(key, getattr(engine, own))
        yield gauge
    counters = dict(engine.counters)
    counters["drafts"] = counters.get("rounds_total", 0.0) - counters.get("plain_rounds_total", 0.0)
    for name, own in {**_COUNTERS, "spec_decode_num_drafts": "drafts"}.items():
        counter = CounterMetricFamily(f"vllm:{name}", f"osd's {own}.", labels=labels)
        counter.add_metric(key, counters.get(own, 0.0))
        yield counter
    ended = CounterMetricFamily("vllm:request_success", "Queries that ended without an error.", labels=labels)
    failed = counters.get("queries_failed_total", 0.0) + counters.get("queries_cancelled_total", 0.0)
    ended.add_metric(key, counters.get("queries_total", 0.0) - failed)
    yield ended
    at_position = CounterMetricFamily(
        "vllm:spec_decode_num_accepted_tokens_per_pos",
        "osd's accepted tokens by position, from 0.",
        labels=(*labels, "position"),
    )
    position = 1
    while any(f"proposed_at_{position}" in one.figures for one in engine.served):
        accepted = sum(one.figures.get(f"accepted_at_{position}", 0.0) for one in engine.served)
        at_position.add_metric((*key, str(position - 1)), accepted)
        position += 1
    yield at_position
