"""/admin/api: alerts, to look at, acknowledge and silence."""

from __future__ import annotations

from fastapi import APIRouter, Request
from pydantic import Field

from osd.monitor.alerts import MOST_SILENT_S, AlertsAnswer
from serving.guards.admission import admits
from serving.guards.routes import with_admin_token
from serving.openapi import ADMIN_SESSION, ADMIN_TOKEN, errors
from serving.routes.admin.audit import audit, operator_of
from serving.services import ServicesDep
from serving.wire.inert_fields import WireModel

router = APIRouter(
    prefix="/admin/api",
    route_class=admits(with_admin_token, ADMIN_TOKEN, ADMIN_SESSION),
    responses=errors(401, 429, 500),
)
_OF_CHANGES = errors(400, 403, 404, 408, 413, 503)


class AcknowledgeBody(WireModel):
    """The alert that somebody takes care of."""

    name: str = Field(max_length=64)
    subject: str = Field("", max_length=200)


class SilenceBody(WireModel):
    """The rule of whose alerts nobody is told for a while; 0 seconds end a silence."""

    name: str = Field(max_length=64)
    for_s: float = Field(ge=0, le=MOST_SILENT_S)


@router.get("/alerts", responses=errors(503))
async def alerts(services: ServicesDep) -> AlertsAnswer:
    """Pending and firing alerts, and silenced rules."""
    return await services.client.alerts()


@router.post("/alerts/acknowledge", status_code=204, responses=_OF_CHANGES)
async def acknowledge(body: AcknowledgeBody, http: Request, services: ServicesDep) -> None:
    """Say that somebody takes care of an alert. 404: it does not hold (any more)."""
    await services.client.acknowledge(body.name, body.subject, operator_of(http))
    await audit(http, services, f"acknowledge the alert {body.name} {body.subject}".rstrip())


@router.post("/alerts/silence", status_code=204, responses=_OF_CHANGES)
async def silence(body: SilenceBody, http: Request, services: ServicesDep) -> None:
    """Tell no receiver about a rule's alerts for a while. 404: there is no such rule."""
    await services.client.silence(body.name, body.for_s, operator_of(http))
    await audit(http, services, f"silence the alert {body.name} for {body.for_s:g} s")
