"""GET /health, /ready, /version and /metrics. None contains user text or secrets."""

from __future__ import annotations

import asyncio
from importlib.metadata import version

from fastapi import APIRouter
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from serving.guards.admission import admits, anyone
from serving.guards.routes import as_configured
from serving.openapi import errors
from serving.services import ServicesDep
from serving.wire.answers import Health, Readiness, Version
from serving.wire.errors import UNAVAILABLE_RETRY_S

router = APIRouter(route_class=admits(anyone))
metrics_router = APIRouter(route_class=admits(as_configured(lambda server: server.metrics_access)))


@router.get("/health", responses={200: {"model": Health}})
async def health() -> Response:
    """Liveness: this process answers; nothing else is asked."""
    return JSONResponse({"status": "ok"})


@router.get("/ready", responses={200: {"model": Readiness}, 503: {"model": Readiness}})
async def ready(services: ServicesDep) -> Response:
    """200 once the engine answers queries, 503 until then."""
    status = await services.status_or_none()
    if status is not None and status.ready:
        return JSONResponse({"status": "ready"})
    headers = {"Retry-After": str(UNAVAILABLE_RETRY_S)}
    return JSONResponse({"status": "starting"}, status_code=503, headers=headers)


@router.get("/version", responses={200: {"model": Version}})
async def tell_version() -> Response:
    """Which osd this is."""
    return JSONResponse({"version": version("osd")})


@metrics_router.get("/metrics", response_class=PlainTextResponse, responses=errors(401, 404, 429))
async def metrics(services: ServicesDep) -> Response:
    """Counters and gauges for Prometheus."""
    status, engines = await asyncio.gather(services.status_or_none(), services.reports())
    return Response(services.metrics.exposition(status, engines), media_type=CONTENT_TYPE_LATEST)
