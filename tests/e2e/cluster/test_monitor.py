"""The admin API over several engines and replicas of the ingress: one history in Redis, one sign-in."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import httpx
import pytest

from osd.config.settings import load_config
from osd.io.history_store import RedisHistory
from osd.monitor.buckets import HistoryQuery
from osd.monitor.history import History
from tests.e2e.cluster.conftest import ADMIN_TOKEN, PROMPTS, Fleet
from tests.kit.waiting import wait_for

pytestmark = [pytest.mark.ray, pytest.mark.redis, pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(400)]
DOMAIN = "history-of-cluster"
_COUNTS = ("rounds", "proposed", "accepted", "committed")


def _ask(fleet: Fleet, prompt: str) -> dict[str, float]:
    """The `osd` object of an answer."""
    asked = {"model": fleet.model, "prompt": prompt, "max_tokens": 60, "temperature": 0, "ignore_eos": True}
    body = {**asked, "osd": {"domain": DOMAIN, "speculation_length": 2}}
    answer = httpx.post(f"{fleet.cluster.url}/v1/completions", json=body, timeout=120).raise_for_status().json()
    found: dict[str, float] = answer["osd"]
    return found


def _served(admin: httpx.Client) -> dict[str, dict[str, float]]:
    """Engine to sums of the domain's figures; empty while the supervisor is away."""
    params: dict[str, Any] = {"from": -3600, "domain": DOMAIN, "by": "engine"}
    answer = admin.get("/admin/api/history", params=params)
    if answer.status_code != 200:
        return {}
    return {
        one["of"]["engine"]: {name: sum(filter(None, values)) for name, values in one["figures"].items()}
        for one in answer.json()["series"]
    }


def _reports(admin: httpx.Client) -> list[dict[str, Any]]:
    """Both engines, once they report."""
    answer = admin.get("/admin/api/engines")
    engines: list[dict[str, Any]] = answer.json() if answer.status_code == 200 else []
    return engines if len(engines) == 2 else []


def _total(by_engine: dict[str, dict[str, float]], name: str) -> float:
    return sum(figures.get(name, 0.0) for figures in by_engine.values())


def _stored_queries(fleet: Fleet) -> float:
    """As Redis has them; the supervisor writes every few seconds."""
    assert fleet.redis is not None
    monitor, now_s = load_config().monitor, time.time()
    with closing(RedisHistory(fleet.redis.url, monitor.history, max_bytes=monitor.history_bytes)) as store:
        answer = History(store).read(HistoryQuery(from_s=now_s - 3600, to_s=now_s, domain=DOMAIN))
    return sum(value or 0.0 for series in answer.series for value in series.figures.get("queries", []))


def test_one_history_of_all_engines_outlives_the_supervisor(fleet: Fleet) -> None:
    with ThreadPoolExecutor(len(PROMPTS)) as pool:  # at once, so that both engines have some
        answers = list(pool.map(lambda prompt: _ask(fleet, prompt), PROMPTS))
    expected = {name: float(sum(one[name] for one in answers)) for name in _COUNTS}
    token = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
    with httpx.Client(base_url=fleet.cluster.url, headers=token, timeout=60) as admin:
        wait_for(lambda: _total(_served(admin), "queries") == len(PROMPTS), "the engines' reports")
        found = _served(admin)
        assert {name: _total(found, name) for name in _COUNTS} == expected
        assert len(found) == 2 and all(figures["rounds"] > 0 for figures in found.values())
        wait_for(lambda: _stored_queries(fleet) == len(PROMPTS), "the history to be in Redis")
        (former,) = fleet.cluster.running("supervisor", 1)
        os.kill(int(former["pid"]), signal.SIGKILL)
        wait_for(
            lambda: former["replica_id"] not in {one["replica_id"] for one in fleet.cluster.running("supervisor")},
            "the supervisor's death to be noticed",
        )
        fleet.cluster.running("supervisor", 1)
        wait_for(lambda: _served(admin), "the new supervisor to read it")
        wait_for(lambda: _reports(admin), "the engines to report to it")
        assert {name: _total(_served(admin), name) for name in _COUNTS} == expected
        _ask(fleet, PROMPTS[0])  # an engine tells it all of its totals again
        wait_for(lambda: _total(_served(admin), "queries") > len(PROMPTS), "a query more")
        assert _total(_served(admin), "queries") == len(PROMPTS) + 1


def test_a_browser_that_signed_in_is_known_to_every_replica_of_the_ingress(fleet: Fleet) -> None:
    with httpx.Client(base_url=fleet.cluster.url, headers={"X-OSD-Admin": "1"}, timeout=60) as browser:
        browser.post("/admin/api/login", json={"token": ADMIN_TOKEN}).raise_for_status()
        cookie = {"Cookie": f"osd_admin={browser.cookies['osd_admin']}"}
        assert {browser.get("/admin/api/versions").status_code for _ in range(20)} == {200}
        assert all('data-signed-in="yes"' in browser.get("/admin").text for _ in range(6))
        browser.post("/admin/api/logout").raise_for_status()
        assert {browser.get("/admin/api/versions", headers=cookie).status_code for _ in range(6)} == {401}
