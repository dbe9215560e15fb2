from __future__ import annotations

import re
from dataclasses import replace

from prometheus_client.parser import text_string_to_metric_families

from osd.io import recorder
from osd.meters import counters
from osd.monitor.labels import Domains
from osd.records.errors import QueueFullError
from osd.records.status import DomainDrift, DriftState, TrainerStatus
from serving.observing.drift_metrics import drift_metrics
from tests.kit.fake_status import fake_report, fake_service
from tests.kit.fakes import FakeEngineClient
from tests.kit.http_client import CHAT, http_client

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def samples_of(text: str) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_engine_counters_and_gauges() -> None:
    async with http_client(FakeEngineClient(service=fake_service())) as client:
        answer = await client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    samples = samples_of(answer.text)
    assert samples["osd_ready", ()] == 1
    assert samples["osd_running_queries", ()] == 2
    assert samples["osd_waiting_queries", ()] == 1
    assert samples["osd_drafter_version", ()] == 3
    assert (samples["osd_slots", ()], samples["osd_cache_room_tokens", ()]) == (8, 8 * 128)
    assert samples["osd_cached_tokens", (("use", "running"),)] == 96
    assert samples["osd_cached_tokens", (("use", "kept"),)] == 160
    assert (samples["osd_events_total", (("kind", "refuse"),)], samples["osd_events_total", (("kind", "pin"),)]) == (
        4,
        0,
    )
    assert samples["osd_accepted_total", ()] == 75
    assert samples["osd_drafter_committed_total", (("drafter_version", "3"),)] == 55
    assert samples["osd_restarts_total", (("actor", "trainer"),)] == 1
    assert samples["osd_trainer_steps_total", ()] == 120


async def test_each_engine_and_each_domains_drift_are_told_apart() -> None:
    service = fake_service()
    assert service.trainer is not None

    def drift(state: DriftState) -> DomainDrift:
        return DomainDrift(state=state, queries=9, before=0.5, recent=0.4)

    found = {"*": drift("warning"), "code": drift("drift"), "chat": drift("stable")}
    status = replace(service, trainer=replace(service.trainer, drift=found))
    engine = FakeEngineClient(service=status, reports=[fake_report("a"), replace(fake_report("b"), running=9)])
    async with http_client(engine) as client:
        samples = samples_of((await client.get("/metrics")).text)
    running = {labels: value for (name, labels), value in samples.items() if name == "osd_engine_running_queries"}
    assert running == {(("engine", "a"),): 2.0, (("engine", "b"),): 9.0}
    assert 0 <= samples["osd_engine_silent_seconds", (("engine", "a"),)] < 60
    assert samples["osd_engine_device_used_bytes", (("engine", "a"),)] == 6e9
    assert samples["osd_engine_device_bytes", (("engine", "b"),)] == 24e9
    states = {
        (labels[0][1], labels[1][1]) for (name, labels), value in samples.items() if name == "osd_drift_state" and value
    }
    assert states == {("*", "warning"), ("code", "drift"), ("chat", "stable")}


def test_domains_beyond_the_limit_show_the_worst_of_their_drift_states() -> None:
    states: dict[str, DriftState] = {"a": "stable", "b": "drift", "c": "warning"}
    drift = {name: DomainDrift(state=one, queries=9, before=0.5, recent=0.4) for name, one in states.items()}
    family = drift_metrics(drift, Domains(1))
    assert {(one.labels["domain"], one.labels["state"]) for one in family.samples if one.value} == {
        ("a", "stable"),
        ("other", "drift"),
    }


async def test_every_metric_has_a_help_text_of_its_own() -> None:
    service = fake_service()
    assert service.engine is not None
    engine = replace(service.engine, counters=dict.fromkeys((*counters.MEANINGS, *recorder.MEANINGS), 1.0))
    client_of = FakeEngineClient(service=replace(service, engine=engine), reports=[fake_report()])
    async with http_client(client_of) as client:
        await client.post("/v1/chat/completions", json=CHAT)
        text = (await client.get("/metrics")).text
    helps = dict(re.findall(r"^# HELP (\S+) ?(.*)$", text, re.MULTILINE))
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    assert helps.keys() == types.keys()
    assert {"osd_ready", "osd_manual_roll_backs_total", "osd_outcomes_dropped_total"} < helps.keys()
    assert len(helps) > 30
    assert [name for name, meaning in helps.items() if len(meaning) < 20] == []
    assert sorted(helps.values()) == sorted(set(helps.values()))
    for name, meaning in helps.items():  # the unit in the name is the unit in the text
        for unit in ("seconds", "bytes"):
            assert (f"_{unit}" in name) <= (unit in meaning.lower()), name


async def test_a_trainer_that_is_switched_off_exports_nothing() -> None:
    service = replace(fake_service(), trainer=TrainerStatus(state="off"))
    async with http_client(FakeEngineClient(service=service)) as client:
        samples = samples_of((await client.get("/metrics")).text)
    assert not [name for name, _ in samples if name.startswith("osd_trainer")]


async def test_nothing_of_ours_is_a_ratio() -> None:
    async with http_client(FakeEngineClient(service=fake_service())) as client:
        names = {name for name, _ in samples_of((await client.get("/metrics")).text)}
    names.discard("osd_trainer_learning_rate")  # a setting of the optimizer
    assert not [name for name in names if name.endswith(("_rate", "_ratio", "_length"))]


async def test_without_an_engine_its_counters_are_absent() -> None:
    async with http_client(FakeEngineClient(service=None)) as client:
        samples = samples_of((await client.get("/metrics")).text)
        ready = await client.get("/ready")
        health = await client.get("/health")
    assert samples["osd_ready", ()] == 0
    assert not [name for name, _ in samples if name.startswith(("osd_rounds", "osd_running"))]
    assert ready.status_code == 503 and ready.headers["retry-after"]
    assert health.status_code == 200


async def test_readiness_follows_the_engine() -> None:
    engine = FakeEngineClient(service=fake_service(ready=False))
    async with http_client(engine) as client:
        assert (await client.get("/ready")).status_code == 503
        engine.service = fake_service()
        assert (await client.get("/ready")).status_code == 200


async def test_requests_are_counted_by_route() -> None:
    engine = FakeEngineClient()
    async with http_client(engine) as client:
        await client.post("/v1/chat/completions", json=CHAT)
        await client.post("/v1/chat/completions", json={**CHAT, "stream": True})
        engine.refuse = QueueFullError("full")
        await client.post("/v1/chat/completions", json=CHAT)
        await client.get("/v1/models/some/thing")
        await client.get("/nowhere/at/all")
        samples = samples_of((await client.get("/metrics")).text)
    route = "/v1/chat/completions"

    def requests(method: str, route: str, status: str) -> float:
        return samples["osd_http_requests_total", (("method", method), ("route", route), ("status", status))]

    assert requests("POST", route, "200") == 2
    assert requests("POST", route, "429") == 1
    assert requests("GET", "/v1/models/{model_id:path}", "404") == 1
    assert requests("GET", "unmatched", "404") == 1
    assert samples["osd_http_request_duration_seconds_count", (("route", route),)] == 3
    assert samples["osd_time_to_first_token_seconds_count", (("route", route),)] == 2


async def test_each_app_counts_for_itself() -> None:
    async with http_client() as first, http_client() as second:
        await first.get("/health")
        samples = samples_of((await second.get("/metrics")).text)
    assert not [name for name, _ in samples if name == "osd_http_requests_total"]
