"""A snapshot of an engine, as status pages show it."""

from __future__ import annotations

from osd.config.settings import Config
from osd.engine.scheduler import Scheduler
from osd.meters.counters import Counters
from osd.models.target import Target
from osd.ports.drafter import Drafter
from osd.ports.outcomes import OutcomeRecorder
from osd.records.status import EngineStatus


def status_of(
    config: Config,
    target: Target,
    drafter: Drafter | None,
    scheduler: Scheduler,
    counters: Counters,
    recorder: OutcomeRecorder | None,
    *,
    utilisation: float,
    speculation_length: int,
    uptime_s: float,
) -> EngineStatus:
    """What an engine of these parts serves, how busy it is, and all that it has counted."""
    recorded = recorder.counters() if recorder else {}
    return EngineStatus(
        target=target.target_id,
        drafter_kind=drafter.kind if drafter else "none",
        drafter_version=drafter.version if drafter else 0,
        running=len(scheduler.decoding) + (scheduler.prefilling is not None),
        waiting=len(scheduler.waiting),
        max_slots=config.engine.max_slots,
        context_tokens=target.max_context_tokens,
        utilisation=utilisation,
        speculation_length=speculation_length,
        speculation_enabled=config.speculation.enabled and drafter is not None,
        uptime_s=uptime_s,
        computes=target.lm.computes,
        counters={**counters.values, **recorded},
        acceptance_by_version={version: dict(counts) for version, counts in counters.by_version.items()},
    )
