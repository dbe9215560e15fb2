"""A real Prometheus, with the deployed rules, reads a real service and agrees with what clients were told."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving.observing.reference import RATIOS
from tests.e2e.conftest import PROMPTS, Service
from tests.kit.deploy_files import alert_expressions, dashboard_expressions
from tests.kit.prometheus_server import query_prometheus, reads_ready, rule_health, running_prometheus
from tests.kit.waiting import wait_for

pytestmark = [pytest.mark.ray, pytest.mark.redis, pytest.mark.timeout(240)]
_DOMAIN = "read-by-prometheus"


def test_what_was_served_is_what_prometheus_reads(service: Service, tmp_path: Path, unused_tcp_port: int) -> None:
    figures = [service.answer(prompt, osd={"domain": _DOMAIN, "speculation_length": 2}).osd for prompt in PROMPTS]
    with running_prometheus(service.url, tmp_path, unused_tcp_port) as prometheus:
        wait_for(lambda: reads_ready(prometheus), "Prometheus to read that the service is ready")
        for name in ("rounds", "proposed", "accepted", "committed"):
            expression = f'sum(osd_domain_{name}_total{{domain="{_DOMAIN}"}})'
            (series,) = query_prometheus(prometheus, expression)
            assert float(series["value"][1]) == sum(one[name] for one in figures), name
        wait_for(lambda: set(rule_health(prometheus).values()) == {"ok"}, "every rule to have been evaluated")
        assert rule_health(prometheus).keys() == alert_expressions().keys()


_EMPTY = {
    "Drift by domain A": "a detector needs more queries than are asked here",
    "domains that drift": "nothing drifts here",
    "domains with a drafter of their own": "drafter.max_domains is 0 here",
}
"""What has no data in a healthy young service, and why."""


@pytest.mark.slow
def test_every_panel_of_the_dashboard_and_every_documented_ratio_has_data(
    service: Service, tmp_path: Path, unused_tcp_port: int
) -> None:
    expressions = {**dashboard_expressions(), **RATIOS}
    assert _EMPTY.keys() <= expressions.keys()
    with running_prometheus(service.url, tmp_path, unused_tcp_port) as prometheus:
        wait_for(lambda: reads_ready(prometheus), "Prometheus to read that the service is ready")

        def empty() -> list[str]:
            """Expressions without a number, after some more traffic."""
            for prompt in PROMPTS:
                service.answer(prompt)
            list(service.stream(PROMPTS[0], 8))
            found = {name: query_prometheus(prometheus, expression) for name, expression in expressions.items()}
            return [
                name
                for name, series in found.items()
                if not any(one["value"][1] not in ("NaN", "+Inf") for one in series)
            ]

        wait_for(lambda: set(empty()) <= _EMPTY.keys(), "every other expression to have data")
