"""The files of `deploy/`, and the tools that check them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from osd.io import recorder
from osd.meters import counters
from osd.records.status import DomainDrift, SpareStatus, StreamStatus
from tests.kit.fake_status import fake_report, fake_service
from tests.kit.fakes import FakeEngineClient

DEPLOY = Path(__file__).parents[2] / "deploy"
_METRIC = re.compile(r"\bosd_[a-z0-9_]+\b")


def documents(path: Path) -> list[Any]:
    """Every document of a YAML file."""
    return [document for document in yaml.safe_load_all(path.read_text()) if document is not None]


def run_tool(name: str, *arguments: str | Path, had_from: str, **environment: str) -> str:
    """What a tool prints that must succeed; the test is skipped where it is not installed."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    program = shutil.which(name, path=path)
    if program is None:
        pytest.skip(f"{name} is not installed ({had_from})")
    done = subprocess.run(
        [program, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def alert_expressions() -> dict[str, str]:
    """PromQL of each alert by its name."""
    (rules,) = documents(DEPLOY / "prometheus" / "alerts.yml")
    return {rule["alert"]: rule["expr"] for group in rules["groups"] for rule in group["rules"]}


def dashboard_expressions() -> dict[str, str]:
    """PromQL of each query on the dashboard, by panel and letter, with Grafana's variables given values."""
    dashboard = json.loads((DEPLOY / "grafana" / "dashboards" / "osd.json").read_text())
    queries = {
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in dashboard["panels"]
        for target in panel.get("targets", [])
    }
    return {name: query.replace("$__rate_interval", "1m").replace("$instance", ".*") for name, query in queries.items()}


def exporting_client() -> FakeEngineClient:
    """A stand-in for the engines whose service has a figure for every metric."""
    service = fake_service()
    assert service.engine is not None and service.trainer is not None
    drift = {"code": DomainDrift(state="warning", queries=9, before=0.5, recent=0.4)}
    whole = replace(
        service,
        engine=replace(service.engine, counters=dict.fromkeys((*counters.MEANINGS, *recorder.MEANINGS), 1.0)),
        trainer=replace(service.trainer, drift=drift),
        spare=SpareStatus(neighbours=("engine",)),
        stream=StreamStatus(),
    )
    return FakeEngineClient(service=whole, reports=[fake_report()])


def metrics_in(expression: str) -> set[str]:
    """Names of osd's metrics in PromQL."""
    return set(_METRIC.findall(expression))


def labels_in(expression: str) -> set[str]:
    """Labels that PromQL selects or sums by."""
    matched = re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"", expression)
    summed = [label for labels in re.findall(r"\bby\s*\(([^)]*)\)", expression) for label in labels.split(",")]
    return {label.strip() for label in (*matched, *summed)}
