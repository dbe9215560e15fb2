"""GET /openapi.json."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from serving.guards.admission import admits
from serving.guards.routes import as_configured

router = APIRouter(route_class=admits(as_configured(lambda server: server.openapi_access)))


@router.get("/openapi.json", include_in_schema=False)
async def openapi(http: Request) -> Response:
    """The schema of this API, also behind a proxy that adds a path prefix."""
    schema = http.app.openapi()
    prefix = http.scope.get("root_path", "").rstrip("/")
    return JSONResponse({**schema, "servers": [{"url": prefix}]} if prefix else schema)
