"""Makes a snapshot of an engine's status."""

from __future__ import annotations

from osd.config.settings import Config
from osd.engine.scheduler import Scheduler
from osd.meters.counters import Counters
from osd.models.target import Target
from osd.ports.outcomes import OutcomeRecorder
from osd.records.drafter_id import DrafterId
from osd.records.status import DrafterCounts, EngineStatus, ServedCounts
from osd.speculation.length import GoodputPolicy


def status_of(
    config: Config,
    target: Target,
    policy: GoodputPolicy,
    scheduler: Scheduler,
    counters: Counters,
    recorder: OutcomeRecorder | None,
    *,
    kept_tokens: int,
    utilisation: float,
    uptime_s: float,
) -> EngineStatus:
    """The status of an engine with these parts."""
    recorded = recorder.counters() if recorder else {}
    first = policy.arms[0].drafter.id if policy.arms else DrafterId("none", 0)
    counts = [DrafterCounts(name=one.name, version=one.version, **own) for one, own in counters.by_drafter.items()]
    return EngineStatus(
        target=target.target_id,
        drafter_kind=first.name,
        drafter_version=first.version,
        running=len(scheduler.in_rows),
        waiting=len(scheduler.waiting),
        max_slots=config.engine.max_slots,
        context_tokens=target.max_context_tokens,
        running_tokens=sum(sequence.num_cached for sequence in scheduler.in_rows),
        kept_tokens=kept_tokens,
        utilisation=utilisation,
        speculation_length=policy.chosen,
        speculation_enabled=config.speculation.enabled and bool(policy.arms),
        uptime_s=uptime_s,
        computes=target.lm.computes,
        context=str(target.context),
        counters={**counters.values, **recorded},
        acceptance_by_version={
            one.version: dict(own) for one, own in counters.by_drafter.items() if one.name == first.name
        },
        drafters=tuple(counts),
        served=tuple(
            ServedCounts(domain=series.domain, drafter=series.drafter, version=series.version, figures=figures)
            for series, figures in counters.served.totals()
        ),
    )
