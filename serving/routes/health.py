"""GET /health, /ready and /metrics. They tell no text and no secret."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from serving.admission import admits, anyone
from serving.errors import UNAVAILABLE_RETRY_S
from serving.guards import as_configured
from serving.services import ServicesDep

router = APIRouter(route_class=admits(anyone))
metrics_router = APIRouter(route_class=admits(as_configured(lambda server: server.metrics_access)))


@router.get("/health")
async def health() -> dict[str, str]:
    """Liveness: this process answers. Asks nobody."""
    return {"status": "ok"}


@router.get("/ready")
async def ready(services: ServicesDep) -> Response:
    """200 once the engine answers queries, 503 until then."""
    status = await services.status_or_none()
    if status is not None and status.ready:
        return JSONResponse({"status": "ready"})
    headers = {"Retry-After": str(UNAVAILABLE_RETRY_S)}
    return JSONResponse({"status": "starting"}, status_code=503, headers=headers)


@metrics_router.get("/metrics")
async def metrics(services: ServicesDep) -> Response:
    """Counters and gauges for Prometheus."""
    status = await services.status_or_none()
    return Response(services.metrics.exposition(status), media_type=CONTENT_TYPE_LATEST)
