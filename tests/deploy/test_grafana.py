"""The dashboard as Grafana's own model of a dashboard has it."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.kit.deploy_files import DEPLOY

pytest.importorskip("grafana_foundation_sdk", reason="not installed (osd[deploy])")

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

_DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana" / "dashboards" / "osd.json").read_text())


def _unknown(given: Any, read: Any, path: str = "") -> Iterator[str]:
    """Paths of what is not there, or is something else, once Grafana's model has read it."""
    if isinstance(given, dict) and isinstance(read, dict):
        for name, value in given.items():
            yield from _unknown(value, read[name], f"{path}.{name}") if name in read else [f"{path}.{name}"]
    elif isinstance(given, list) and isinstance(read, list) and len(given) == len(read):
        for at, (one, other) in enumerate(zip(given, read, strict=True)):
            yield from _unknown(one, other, f"{path}[{at}]")
    elif given != read:
        yield path


def _read(dashboard: dict[str, Any]) -> Any:
    """What Grafana's model keeps of a dashboard: panels, their options and queries included."""
    register_default_plugins()
    return json.loads(json.dumps(Dashboard.from_json(copy.deepcopy(dashboard)), cls=JSONEncoder))


def test_grafanas_model_knows_every_field() -> None:
    assert list(_unknown(_DASHBOARD, _read(_DASHBOARD))) == []


def test_the_check_finds_unknown_fields_of_panels_options_and_queries() -> None:
    wrong = copy.deepcopy(_DASHBOARD)
    at = next(at for at, panel in enumerate(wrong["panels"]) if panel["type"] == "timeseries")
    panel = wrong["panels"][at]
    panel["gridPos"]["z"] = panel["options"]["legends"] = panel["targets"][0]["promql"] = panel["titel"] = 1
    panel["fieldConfig"]["defaults"]["units"] = "short"
    expected = {"gridPos.z", "options.legends", "targets[0].promql", "titel", "fieldConfig.defaults.units"}
    assert set(_unknown(wrong, _read(wrong))) == {f".panels[{at}].{path}" for path in expected}
