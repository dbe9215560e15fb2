"""A real Prometheus, with the deployed rules, reads osd's HTTP server over a stand-in for the engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from osd.config.settings import load_config
from serving.app import create_app
from tests.kit.deploy_files import alert_expressions, dashboard_expressions, exporting_client
from tests.kit.fakes import FakeCodec
from tests.kit.http_client import CHAT
from tests.kit.http_server import serve
from tests.kit.prometheus_server import query_prometheus, reads_ready, rule_health, running_prometheus
from tests.kit.waiting import wait_for


@pytest.fixture
def osd_url() -> Iterator[str]:
    with serve(create_app(load_config(), exporting_client(), FakeCodec(), admin_token_sha256="")) as url:
        yield url


@pytest.fixture
def prometheus(osd_url: str, tmp_path: Path, unused_tcp_port: int) -> Iterator[httpx.Client]:
    with running_prometheus(osd_url, tmp_path, unused_tcp_port) as client:
        yield client


def test_prometheus_reads_the_metrics_and_evaluates_rules_and_dashboard(osd_url: str, prometheus: httpx.Client) -> None:
    httpx.post(f"{osd_url}/v1/chat/completions", json={**CHAT, "stream": True}).raise_for_status()
    wait_for(lambda: reads_ready(prometheus), "Prometheus to read that the service is ready")
    wait_for(lambda: query_prometheus(prometheus, "rate(osd_rounds_total[1m])"), "a second scrape, which makes a rate")
    wait_for(lambda: set(rule_health(prometheus).values()) == {"ok"}, "every rule to have been evaluated")
    assert rule_health(prometheus).keys() == alert_expressions().keys()
    alerts = prometheus.get("/api/v1/alerts").json()["data"]["alerts"]
    assert [alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"] == []
    queries = dashboard_expressions()
    assert {name for name, query in queries.items() if not query_prometheus(prometheus, query)} == set()
