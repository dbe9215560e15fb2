"""/admin/api/engines: the engines that report, where they are and how they are."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Self

from fastapi import APIRouter

from osd.fleet.heartbeat import EngineReport
from serving.guards.admission import admits
from serving.guards.routes import with_admin_token
from serving.openapi import ADMIN_SESSION, ADMIN_TOKEN, errors
from serving.services import ServicesDep

router = APIRouter(
    prefix="/admin/api",
    route_class=admits(with_admin_token, ADMIN_TOKEN, ADMIN_SESSION),
    responses=errors(401, 429, 500),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineNow:
    """One engine by its latest report."""

    engine_id: str
    node: str
    device: str
    """`cpu`, or the unique id of the GPU."""
    device_used_bytes: int
    """Of the device's memory, or on a CPU the node's, what any process uses."""
    device_bytes: int
    """All of it; 0: not known."""
    pid: int
    drafter: str
    drafter_version: int
    utilisation: float
    running: int
    waiting: int
    free_rows: int
    paused_s: float
    """Seconds that it has paused for training, in total."""
    silent_s: float
    """Seconds since its latest report, as far as the clocks of both machines agree."""
    refused: dict[int, str]
    """Drafter versions that it could not use, and why."""

    @classmethod
    def of(cls, report: EngineReport) -> Self:
        """From its latest report."""
        return cls(
            engine_id=report.engine_id,
            node=report.node,
            device=report.device,
            device_used_bytes=report.device_used_bytes,
            device_bytes=report.device_bytes,
            pid=report.pid,
            drafter=report.drafter.name,
            drafter_version=report.drafter.version,
            utilisation=report.utilisation,
            running=report.running,
            waiting=report.waiting,
            free_rows=report.free_rows,
            paused_s=report.paused_s,
            silent_s=max(time.time() - report.at_s, 0.0),
            refused=report.refused,
        )


@router.get("/engines", responses=errors(503))
async def engines(services: ServicesDep) -> list[EngineNow]:
    """Every engine that reports."""
    return [EngineNow.of(report) for report in await services.client.engines()]
