"""Actors that are asked by name, without Ray, and an engine that reports to a supervisor among them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from actors.process.node import node_id
from actors.supervisor.supervisor import SupervisorActor
from tests.kit.reports import engine_report


@dataclass
class NamedActors:
    """Plain objects that are asked by name; one that is not there now raises, as Ray does."""

    named: dict[str, Any]
    num_misses: Counter[str] = field(default_factory=Counter)
    """Questions to an actor that was away, by its name."""

    def ask(self, actor: str, method: str, *args: Any, timeout_s: float) -> Any:
        if (found := self.named.get(actor)) is None:
            self.num_misses[actor] += 1
            raise ValueError(actor)
        return getattr(found, method)(*args)


@dataclass
class ReportingEngine:
    """An engine on the distiller's device."""

    supervisor: SupervisorActor
    busy: float = 0.0
    pid: int = 0
    reports: int = 0

    def share(self) -> float:
        """What it is to leave to training, in answer to a report."""
        report = engine_report("one", node=node_id(), number=self.reports, utilisation=self.busy)
        self.reports += 1
        return self.supervisor.report(report).training_share

    def ping(self) -> int:
        return self.pid
