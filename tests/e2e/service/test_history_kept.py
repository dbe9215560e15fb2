"""What was served is in the history by domain and version, and stays there when the supervisor is killed."""

from __future__ import annotations

import os
import signal
import time
from contextlib import closing
from typing import Any

import pytest
import redis

from osd.io.history_store import RedisHistory
from osd.monitor.buckets import HistoryQuery
from osd.monitor.history import History
from tests.e2e.conftest import PROMPTS, Service
from tests.kit.waiting import wait_for

pytestmark = [pytest.mark.ray, pytest.mark.redis, pytest.mark.timeout(240)]
DOMAIN = "history-of-e2e"


def _served(service: Service) -> dict[str, float]:
    """Sums of the domain's figures in the last hour; empty while the supervisor is away."""
    answer = service.admin.get("/admin/api/history", params={"from": -3600, "domain": DOMAIN, "by": ["domain"]})
    if answer.status_code != 200:
        return {}
    body: dict[str, Any] = answer.json()
    return {
        name: sum(value or 0.0 for value in values)
        for series in body["series"]
        for name, values in series["figures"].items()
    }


def test_history_is_counted_right_and_outlives_the_supervisor(service: Service) -> None:
    answers = [service.answer(prompt, osd={"domain": DOMAIN, "speculation_length": 2}).osd for prompt in PROMPTS]
    expected = {
        name: float(sum(one[name] for one in answers)) for name in ("rounds", "proposed", "accepted", "committed")
    }
    wait_for(lambda: _served(service).get("queries") == len(PROMPTS), "the engine's report")
    found = _served(service)
    assert {name: found[name] for name in expected} == expected
    assert found["proposed_at_1"] >= found["proposed_at_2"] > 0 and found["decode_ms"] > 0 and found["plain_ms"] > 0
    wait_for(lambda: _stored_queries(service) == len(PROMPTS), "the history to be stored")
    os.kill(service.pid("supervisor"), signal.SIGKILL)
    service.pid("supervisor")
    wait_for(
        lambda: _served(service).get("queries") == len(PROMPTS), "the new supervisor to read what the old one wrote"
    )
    assert {name: _served(service)[name] for name in expected} == expected
    wait_for(lambda: _restarts_of(service, "supervisor"), "the restart to be marked")
    assert _restarts_of(service, "service") == [], "the engine ran on"


def _restarts_of(service: Service, actor: str) -> list[str]:
    return [event["message"] for event in service.events("restart") if event["data"].get("actor") == actor]


def _stored_queries(service: Service, domain: str = DOMAIN) -> float:
    """A domain's queries as Redis has them; the supervisor writes every few seconds."""
    assert service.topology.redis is not None
    monitor, now_s = service.topology.config.monitor, time.time()
    store = RedisHistory(service.topology.redis.url, monitor.history, max_bytes=monitor.history_bytes)
    with closing(store):
        history = History(store, max_domains=monitor.max_domains, clock_s=time.time)
        answer = history.read(HistoryQuery(from_s=now_s - 3600, to_s=now_s, domain=domain))
    return sum(value or 0.0 for series in answer.series for value in series.figures.get("queries", []))


def test_an_operators_policy_reaches_the_engine(service: Service) -> None:
    def lever(path: str, **body: Any) -> None:
        service.admin.post(f"/admin/api/{path}", json=body, headers={"X-OSD-Operator": "anna"}).raise_for_status()

    lever("policy", domain="plain-please", length=0)
    wait_for(lambda: service.answer(PROMPTS[0], osd={"domain": "plain-please"}).osd["proposed"] == 0, "plain decoding")
    assert service.admin.get("/admin/api/wishes").json()["lengths"] == {"plain-please": 0}
    lever("policy", domain="plain-please", length=1)
    wait_for(
        lambda: service.answer(PROMPTS[0], osd={"domain": "plain-please"}).osd["proposed"] > 0, "speculation again"
    )
    lever("policy", domain="plain-please")
    assert any("anna" in event["message"] for event in service.events("audit"))


@pytest.mark.slow
def test_a_redis_that_somebody_empties_gets_back_what_is_remembered(service: Service) -> None:
    """What this supervisor counted, the operator's wishes, the claim to the stream, the distiller's lease and group."""
    assert service.topology.redis is not None
    domain = "of-an-emptied-redis"
    service.admin.post("/admin/api/policy", json={"domain": domain, "length": 2}).raise_for_status()
    service.answer(PROMPTS[0], osd={"domain": domain})
    wait_for(lambda: _stored_queries(service, domain) == 1, "the history to be stored")
    with redis.Redis.from_url(service.topology.redis.url) as server:
        server.flushall()
        wait_for(lambda: _stored_queries(service, domain) == 1, "the history to be written again")
        wait_for(
            lambda: any("was emptied" in one["message"] for one in service.events("gap")), "the operator to be told"
        )
        wait_for(lambda: server.exists("osd:outcomes:owner", "osd:outcomes:distiller") == 2, "claim and lease")
    taught = _taught(service)
    # Nobody else asks this: of an answer that it has many times already, the trainer keeps no further copy.
    service.answer("after the flood", osd={"domain": domain})
    wait_for(lambda: _taught(service) > taught, "the trainer to read the stream again")
    wait_for(lambda: _stored_queries(service, domain) == 2, "the history to go on")
    assert service.admin.get("/admin/api/wishes").json()["lengths"][domain] == 2
    service.admin.post("/admin/api/policy", json={"domain": domain, "length": None}).raise_for_status()


def _taught(service: Service) -> int:
    """Outcomes that the trainer has."""
    trainer = service.status()["trainer"]
    return int(trainer["replay_records"] + trainer["held_out_records"]) if trainer else 0
