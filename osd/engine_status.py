"""A snapshot of an engine, as status pages show it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from osd.models.cpu import describe
from osd.types import EngineStatus

if TYPE_CHECKING:
    from osd.engine import Engine


def status_of(engine: Engine, *, uptime_s: float) -> EngineStatus:
    """What an engine serves, how busy it is, and all that it has counted."""
    scheduler, drafter, counters = engine.scheduler, engine.drafter, engine.counters
    recorded = engine.recorder.counters() if engine.recorder else {}
    return EngineStatus(
        target=engine.target.target_id,
        drafter_kind=drafter.kind if drafter else "none",
        drafter_version=drafter.version if drafter else 0,
        running=len(scheduler.decoding) + (scheduler.prefilling is not None),
        waiting=len(scheduler.waiting),
        max_slots=engine.config.engine.max_slots,
        context_tokens=engine.target.max_context_tokens,
        utilisation=engine.utilisation.share(),
        speculation_length=engine.policy.chosen,
        speculation_enabled=engine.config.speculation.enabled and drafter is not None,
        uptime_s=uptime_s,
        computes=describe(engine.target.lm),
        counters={**counters.values, **recorded},
        acceptance_by_version={version: dict(counts) for version, counts in counters.by_version.items()},
    )
