"""Alerts and dashboard ask only for metrics and labels that osd exports."""

from __future__ import annotations

import json
from collections import defaultdict

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.kit.deploy_files import (
    DEPLOY,
    alert_expressions,
    dashboard_expressions,
    exporting_client,
    labels_in,
    metrics_in,
)
from tests.kit.http_client import CHAT, http_client

_OF_PROMETHEUS = {"job", "instance", "le"}
EXPRESSIONS = {**alert_expressions(), **dashboard_expressions()}


@pytest.fixture
async def exported() -> dict[str, set[str]]:
    """Metric to its labels, as /metrics has them after a streamed answer."""
    async with http_client(exporting_client()) as client:
        await client.post("/v1/chat/completions", json={**CHAT, "stream": True})
        text = (await client.get("/metrics")).text
    labels: dict[str, set[str]] = defaultdict(set)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels[sample.name] |= sample.labels.keys()
    return labels


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_an_expression_uses_what_is_exported(name: str, exported: dict[str, set[str]]) -> None:
    expression = EXPRESSIONS[name]
    metrics = metrics_in(expression)
    assert metrics or "up{" in expression
    assert metrics <= exported.keys()
    assert labels_in(expression) <= _OF_PROMETHEUS.union(*(exported[metric] for metric in metrics))


def test_the_checks_find_a_wrong_name_and_a_wrong_label() -> None:
    expression = 'sum by (instance, colour) (rate(osd_rounds_totals{shape=~"a"}[5m])) / osd_ready'
    assert metrics_in(expression) == {"osd_rounds_totals", "osd_ready"}
    assert labels_in(expression) == {"instance", "colour", "shape"}


def test_rule_tests_cover_every_alert() -> None:
    tested = (DEPLOY / "prometheus" / "alerts_test.yml").read_text()
    assert [name for name in alert_expressions() if f"alertname: {name}" not in tested] == []


def test_dashboard_panels_do_not_overlap_and_use_the_provisioned_source() -> None:
    dashboard = json.loads((DEPLOY / "grafana" / "dashboards" / "osd.json").read_text())
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert all(0 <= x < 24 for x, _ in cells)
        taken |= cells
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    assert {variable["name"] for variable in dashboard["templating"]["list"]} == {"source", "instance"}
