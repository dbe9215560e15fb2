"""A real Prometheus, with the deployed rules, reads osd's HTTP server over a stand-in for the engine."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from osd.config.settings import load_config
from serving.app import create_app
from tests.kit.deploy_files import DEPLOY, alert_expressions, dashboard_expressions, documents, exporting_client
from tests.kit.fakes import FakeCodec
from tests.kit.http_client import CHAT
from tests.kit.http_server import serve
from tests.kit.waiting import wait_for


@pytest.fixture
def osd_url() -> Iterator[str]:
    with serve(create_app(load_config(), exporting_client(), FakeCodec(), admin_token_sha256="")) as url:
        yield url


@pytest.fixture
def prometheus(osd_url: str, tmp_path: Path, unused_tcp_port: int) -> Iterator[httpx.Client]:
    """The deployed configuration, but for the target's address and shorter intervals."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is not installed (Debian's package prometheus)")
    (config,) = documents(DEPLOY / "prometheus" / "prometheus.yml")
    config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    config["scrape_configs"] = [
        {**config["scrape_configs"][0], "static_configs": [{"targets": [osd_url.removeprefix("http://")]}]}
    ]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    shutil.copy(DEPLOY / "prometheus" / "alerts.yml", tmp_path)
    address = f"127.0.0.1:{unused_tcp_port}"
    arguments = [f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data"]
    with (
        subprocess.Popen([program, *arguments, f"--web.listen-address={address}", "--log.level=error"]) as server,
        httpx.Client(base_url=f"http://{address}") as client,
    ):
        try:
            yield client
        finally:
            server.terminate()


def _query(prometheus: httpx.Client, expression: str) -> list[Any]:
    answer = prometheus.get("/api/v1/query", params={"query": expression})
    assert answer.status_code == 200, answer.text
    result: list[Any] = answer.json()["data"]["result"]
    return result


def test_prometheus_reads_the_metrics_and_evaluates_rules_and_dashboard(osd_url: str, prometheus: httpx.Client) -> None:
    def is_ready() -> bool:
        try:
            if prometheus.get("/-/ready").status_code != 200:  # it answers 503 while it starts
                return False
            return [series["value"][1] for series in _query(prometheus, "osd_ready")] == ["1"]
        except httpx.TransportError:  # it is starting
            return False

    httpx.post(f"{osd_url}/v1/chat/completions", json={**CHAT, "stream": True}).raise_for_status()
    wait_for(is_ready, "Prometheus to read that the service is ready")
    wait_for(lambda: _query(prometheus, "rate(osd_rounds_total[1m])"), "a second scrape, which makes a rate")

    def rules() -> dict[str, str]:
        groups = prometheus.get("/api/v1/rules").json()["data"]["groups"]
        return {rule["name"]: rule["health"] for group in groups for rule in group["rules"]}

    wait_for(lambda: set(rules().values()) == {"ok"}, "every rule to have been evaluated")
    assert rules().keys() == alert_expressions().keys()
    alerts = prometheus.get("/api/v1/alerts").json()["data"]["alerts"]
    assert [alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"] == []
    queries = dashboard_expressions()
    assert {name for name, query in queries.items() if not _query(prometheus, query)} == set()
