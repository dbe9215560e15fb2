"""The metrics that are documented are those that are exported, with bounded labels."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

import osd
from osd.config.settings import load_config
from osd.meters.counters import MAX_VERSIONS, Counters
from osd.records.outcome import Round
from osd.records.query import QueryStats, TokenDelta
from osd.records.status import ServedCounts, VersionsStatus
from serving.observing.metrics import Metrics
from serving.observing.query_metrics import QueryMetrics
from serving.observing.reference import RATIOS, exposition, page
from serving.observing.served_metrics import ServedMetrics
from tests.kit.clock import Clock
from tests.kit.fake_status import fake_service

ROOT = Path(osd.__file__).parents[1]


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (one.name, tuple(sorted(one.labels.items()))): one.value
        for family in text_string_to_metric_families(text)
        for one in family.samples
    }


def test_the_page_is_generated() -> None:
    written = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert written == page(), "python -m serving.observing.reference > docs/metrics.md"


def test_every_ratio_is_of_metrics_that_exist() -> None:
    names = {name for name, _ in samples(exposition())}
    for promql in RATIOS.values():
        used = set(re.findall(r"osd_\w+", promql))
        assert used and used <= names, promql


def test_domains_are_bounded_labels() -> None:
    config = load_config(flags={"monitor": {"max_domains": 2}})
    metrics = Metrics(config, "m")
    status = fake_service()
    assert status.engine is not None
    served = [
        ServedCounts(domain=f"d{number}", drafter="feature", version=1, figures={"rounds": 1.0, "accepted_at_2": 3.0})
        for number in range(5)
    ]
    object.__setattr__(status.engine, "served", tuple(served))
    for number in range(5):
        metrics.queries.observe(TokenDelta(request_id="r", finish_reason="stop", stats=QueryStats()), f"d{number}")
    found = samples(metrics.exposition(status).decode())
    rounds = {labels[0][1]: value for (name, labels), value in found.items() if name == "osd_domain_rounds_total"}
    assert rounds == {"d0": 1.0, "d1": 1.0, "other": 3.0}
    finished = {labels[0][1]: value for (name, labels), value in found.items() if name == "osd_finished_queries_total"}
    assert finished == {"d0": 1.0, "d1": 1.0, "other": 3.0}
    assert found["osd_accepted_at_position_total", (("position", "2"),)] == 15.0


def _served(**rounds: float) -> tuple[ServedCounts, ...]:
    return tuple(
        ServedCounts(domain=domain, drafter="feature", version=1, figures={"rounds": one, "length_2": one})
        for domain, one in rounds.items()
    )


def _counts(served: ServedMetrics) -> dict[str, float]:
    """Rounds by domain, and by their length."""
    found = [one for family in served.metrics() for one in family.samples]
    return {one.labels.get("domain", one.name): one.value for one in found}


def test_counters_neither_fall_nor_leap_when_an_engine_forgets_a_domain() -> None:
    """Prometheus would take the one for a restart, and the other for queries."""
    served = ServedMetrics(1)
    served.take(_served(a=5.0, b=7.0, c=11.0))
    assert _counts(served) == {"a": 5.0, "other": 18.0, "osd_rounds_by_length_total": 23.0}
    served.take(_served(a=5.0, c=12.0))
    assert _counts(served) == {"a": 5.0, "other": 19.0, "osd_rounds_by_length_total": 24.0}
    served.take(_served(b=7.0))
    assert _counts(served) == {"a": 5.0, "other": 19.0, "osd_rounds_by_length_total": 24.0}, "the others were not asked"
    served.take(_served(a=1.0, b=8.0))
    assert _counts(served) == {"a": 5.0, "other": 20.0, "osd_rounds_by_length_total": 25.0}, "a began anew"
    served.take(_served(a=3.0))
    assert _counts(served) == {"a": 7.0, "other": 20.0, "osd_rounds_by_length_total": 27.0}


def test_a_metrics_label_goes_over_to_a_domain_that_has_queries() -> None:
    clock = Clock()
    served, queries = ServedMetrics(1, clock=clock), QueryMetrics(CollectorRegistry(), 1, clock=clock)
    last = TokenDelta(request_id="r", finish_reason="stop", stats=QueryStats())
    served.take(_served(old=5.0))
    queries.observe(last, "old")
    clock.now_s += 3 * 86_400
    served.take(_served(old=5.0, new=1.0))
    queries.observe(last, "new")
    assert _counts(served) == {"new": 1.0, "osd_rounds_by_length_total": 6.0}
    assert {one.labels["domain"] for family in queries._finished.collect() for one in family.samples} == {"new"}
    served.take(_served(old=6.0, new=1.0))
    assert _counts(served) == {"new": 1.0, "other": 1.0, "osd_rounds_by_length_total": 7.0}


def test_drafter_versions_are_bounded_labels() -> None:
    served = ServedMetrics(1)
    for version in range(3000):
        served.take([ServedCounts(domain="a", drafter="feature", version=version, figures={"rounds": 1.0})])
    (rounds, *_) = served.metrics()
    assert {int(one.labels["drafter_version"]) for one in rounds.samples} == set(range(3000 - 512, 3000))
    counters = Counters()
    for version in range(1, 100):
        counters.add_round(Round(version, 3, 1, "feature"), 2, "a")
    assert {one.version for one in counters.by_drafter} == set(range(100 - MAX_VERSIONS, 100))


def test_domains_with_drafters_of_their_own_are_told() -> None:
    metrics = Metrics(load_config(flags={"monitor": {"max_domains": 3}}), "m")  # the service serves one called code
    versions = {"sql": 4, "mail": 0, "chat": 2, "news": 7}
    status = replace(fake_service(), domains={name: VersionsStatus(confirmed=one) for name, one in versions.items()})
    found = samples(metrics.exposition(status).decode())
    own = {labels[0][1]: value for (name, labels), value in found.items() if name == "osd_domain_own_drafter_version"}
    assert own == {"sql": 4.0, "mail": 0.0, "other": 7.0}


def test_a_query_is_observed_where_its_time_went() -> None:
    metrics = Metrics(load_config(), "m")
    stats = QueryStats(
        prompt_tokens=10,
        output_tokens=5,
        queue_ms=2000.0,
        prefill_ms=30.0,
        draft_ms=40.0,
        verify_ms=160.0,
        total_ms=2300.0,
    )
    metrics.queries.observe(TokenDelta(request_id="r", finish_reason="length", stats=stats), "code")
    found = samples(metrics.exposition(None).decode())
    assert found["osd_query_queue_seconds_sum", ()] == 2.0
    assert found["osd_query_decode_seconds_sum", ()] == 0.2
    assert found["osd_time_per_output_token_seconds_sum", ()] == 0.05
    assert found["osd_finished_queries_total", (("domain", "code"), ("reason", "length"))] == 1.0


def test_names_of_vllm_are_there_only_when_asked_for() -> None:
    assert "vllm:" not in Metrics(load_config(), "m").exposition(fake_service()).decode()
    metrics = Metrics(load_config(flags={"server": {"vllm_metrics": True}}), "smollm2")
    found = samples(metrics.exposition(fake_service()).decode())
    key = (("engine", "0"), ("model_name", "smollm2"))
    counters = fake_service().engine.counters  # type: ignore[union-attr]
    assert found["vllm:spec_decode_num_accepted_tokens_total", key] == counters["accepted_total"]
    drafts = counters["rounds_total"] - counters.get("plain_rounds_total", 0.0)
    assert found["vllm:spec_decode_num_drafts_total", key] == drafts
    assert found["vllm:kv_cache_usage_perc", key] == 96 / (8 * 128)
    assert found["vllm:prefix_cache_queries_total", key] == counters["prompt_tokens_total"] == 900.0
    assert found["vllm:prefix_cache_hits_total", key] == counters["reused_tokens_total"] == 300.0
    observed = TokenDelta(request_id="r", finish_reason="length", stats=QueryStats(output_tokens=5, verify_ms=400.0))
    metrics.queries.observe(observed, "code")
    metrics.queries.observe(TokenDelta(request_id="r", finish_reason="error"), "code")
    metrics.http.observe_first_token("/v1/completions", 0.2)
    found = samples(metrics.exposition(fake_service()).decode())
    assert found["vllm:inter_token_latency_seconds_sum", key] == pytest.approx(0.1)
    assert found["vllm:inter_token_latency_seconds_bucket", (("engine", "0"), ("le", "0.05"), key[1])] == 0.0
    assert found["vllm:inter_token_latency_seconds_bucket", (("engine", "0"), ("le", "+Inf"), key[1])] == 1.0
    assert found["vllm:time_to_first_token_seconds_sum", (*key, ("route", "/v1/completions"))] == 0.2
    ended = {labels: value for (name, labels), value in found.items() if name == "vllm:request_success_total"}
    assert ended == {(key[0], ("finished_reason", "length"), key[1]): 1.0}


DASHBOARD = """
vllm:e2e_request_latency_seconds_bucket vllm:prompt_tokens_total vllm:generation_tokens_total
vllm:inter_token_latency_seconds_bucket vllm:num_requests_running vllm:num_requests_waiting
vllm:time_to_first_token_seconds_bucket vllm:request_prompt_tokens_bucket vllm:request_generation_tokens_bucket
vllm:request_success_total vllm:request_queue_time_seconds_sum vllm:request_prefill_time_seconds_sum
vllm:request_decode_time_seconds_sum vllm:spec_decode_num_accepted_tokens_total
vllm:spec_decode_num_draft_tokens_total vllm:spec_decode_num_drafts_total
vllm:spec_decode_num_accepted_tokens_per_pos_total
vllm:kv_cache_usage_perc vllm:prefix_cache_queries_total vllm:prefix_cache_hits_total
"""
"""What vLLM's own dashboards ask for."""


def test_vllms_dashboards_have_what_they_ask_for() -> None:
    names = {name for name, labels in samples(exposition()) if {"model_name", "engine"} <= dict(labels).keys()}
    assert set(DASHBOARD.split()) <= names
