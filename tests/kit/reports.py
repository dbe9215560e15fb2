"""Engines' reports, as tests make them up."""

from __future__ import annotations

from typing import Any

from osd.fleet.heartbeat import EngineReport
from osd.records.drafter_id import DrafterId


def engine_report(engine_id: str = "a", **fields: Any) -> EngineReport:
    """A report of an idle engine on a CPU, except for the given fields."""
    usual: dict[str, Any] = {
        "incarnation": "first",
        "number": 0,
        "is_full": True,
        "at_s": 0.0,
        "node": "node",
        "device": "cpu",
        "pid": 1,
        "target_id": "tiny",
        "drafter": DrafterId("model", 1),
        "utilisation": 0.0,
        "running": 0,
        "waiting": 0,
        "free_rows": 4,
        "paused_s": 0.0,
    }
    return EngineReport(engine_id=engine_id, **(usual | fields))
