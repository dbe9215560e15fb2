"""Makes an engine's reports to the supervisor."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Mapping
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING

from osd.fleet.heartbeat import DomainReport, EngineReport
from osd.monitor.buckets import Figures, Series
from osd.records.drafter_id import DrafterId, domain_of

if TYPE_CHECKING:
    from osd.assembly.assemble import EngineAssembly
    from osd.engine.engine import Engine

_TIMEOUT_S = 60.0
"""Longest wait for the end of the engine's step; the supervisor takes a silent engine for away sooner than that."""


class EngineReports:
    """Makes the reports of one engine process, and numbers them.

    Args:
        engine_id: see `EngineReport`.
        assembly: the engine with everything around it.
        node: identifies the machine that this process runs on.
    """

    def __init__(self, engine_id: str, assembly: EngineAssembly, node: str) -> None:
        self._engine_id, self._assembly, self._node = engine_id, assembly, node
        self._incarnation = uuid.uuid4().hex[:16]
        self._numbers = count()

    def make(self, is_full: bool) -> EngineReport:
        """The next report; waits for the end of the engine's current step.

        Args:
            is_full: report all counts, not only those that changed.
        """
        loop = self._assembly.loop
        return loop.call(lambda engine: self._report(engine, is_full)).result(_TIMEOUT_S)

    def _report(self, engine: Engine, is_full: bool) -> EngineReport:
        from osd.machine.device_id import device_id
        from osd.machine.device_memory import device_memory

        memory = device_memory(engine.target.lm.device)
        status, refused = engine.status(), self._assembly.hot_swap.refused() if self._assembly.hot_swap else {}
        own = {
            arm.name: DomainReport(version=arm.drafter.id.version, rounds=arm.watch.take(everything=is_full))
            for arm in engine.policy.own
        }
        for name in filter(domain_of, refused):
            own[name] = replace(own.get(name, DomainReport()), refused=refused[name])
        return EngineReport(
            engine_id=self._engine_id,
            incarnation=self._incarnation,
            number=next(self._numbers),
            is_full=is_full,
            at_s=time.time(),
            node=self._node,
            device=device_id(engine.target.lm.device),
            pid=os.getpid(),
            target_id=status.target,
            drafter=DrafterId(status.drafter_kind, status.drafter_version),
            utilisation=engine.utilisation.share(),
            running=status.running,
            waiting=status.waiting,
            free_rows=max(status.max_slots - status.running - status.waiting, 0),
            paused_s=engine.counters.values["paused_seconds_total"],
            device_used_bytes=memory.used,
            device_bytes=memory.total,
            uptime_s=status.uptime_s,
            outcomes_dropped=int(status.counters.get("outcomes_dropped", 0)),
            served=(
                *engine.counters.served.take(everything=is_full),
                (Series(), _of_engine(status.counters)),
            ),
            rounds=engine.policy.arms[0].watch.take(everything=is_full) if engine.policy.arms else (),
            refused=refused.get(status.drafter_kind, {}),
            domains={domain_of(name): report for name, report in own.items()},
        )


def _of_engine(counters: Mapping[str, float]) -> Figures:
    """The figures of the history that an engine counts for all domains together."""
    return {
        "dropped": float(counters.get("outcomes_dropped", 0.0)),
        "paused_ms": 1e3 * counters.get("paused_seconds_total", 0.0),
    }
