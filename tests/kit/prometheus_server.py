"""A real Prometheus with the deployed configuration, and questions to it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.kit.deploy_files import DEPLOY, documents


@contextmanager
def running_prometheus(osd_url: str, folder: Path, port: int) -> Iterator[httpx.Client]:
    """As deployed, but for the target's address and shorter intervals; the test is skipped where it is not installed.

    Args:
        osd_url: of the server that it reads.
        folder: for its files.
        port: where it listens on this machine.
    """
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is not installed (Debian's package prometheus)")
    (config,) = documents(DEPLOY / "prometheus" / "prometheus.yml")
    config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    config["scrape_configs"] = [
        {**config["scrape_configs"][0], "static_configs": [{"targets": [osd_url.removeprefix("http://")]}]}
    ]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    shutil.copy(DEPLOY / "prometheus" / "alerts.yml", folder)
    address = f"127.0.0.1:{port}"
    arguments = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    with (
        subprocess.Popen([program, *arguments, f"--web.listen-address={address}", "--log.level=error"]) as server,
        httpx.Client(base_url=f"http://{address}") as client,
    ):
        try:
            yield client
        finally:
            server.terminate()


def query_prometheus(prometheus: httpx.Client, expression: str) -> list[Any]:
    """The series that PromQL gives now."""
    answer = prometheus.get("/api/v1/query", params={"query": expression})
    assert answer.status_code == 200, answer.text
    result: list[Any] = answer.json()["data"]["result"]
    return result


def reads_ready(prometheus: httpx.Client) -> bool:
    """Whether it has read that osd is ready."""
    try:
        if prometheus.get("/-/ready").status_code != 200:  # it answers 503 while it starts
            return False
        return [series["value"][1] for series in query_prometheus(prometheus, "osd_ready")] == ["1"]
    except httpx.TransportError:  # it is starting
        return False


def rule_health(prometheus: httpx.Client) -> dict[str, str]:
    """Rule to what became of its last evaluation: `ok`, `err` or `unknown`."""
    groups = prometheus.get("/api/v1/rules").json()["data"]["groups"]
    return {rule["name"]: rule["health"] for group in groups for rule in group["rules"]}
