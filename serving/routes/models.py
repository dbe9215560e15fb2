"""GET /v1/models and /v1/models/{id}: the one model that is served."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from serving.admission import admits
from serving.codec import Codec
from serving.guards import with_api_key
from serving.queries import check_model
from serving.services import ServicesDep

router = APIRouter(route_class=admits(with_api_key))


@router.get("/v1/models")
async def list_models(http: Request, services: ServicesDep) -> dict[str, Any]:
    """A list of one."""
    return {"object": "list", "data": [_card(services.codec, http.app.state.created_s)]}


@router.get("/v1/models/{model_id:path}")
async def retrieve_model(model_id: str, http: Request, services: ServicesDep) -> dict[str, Any]:
    """The served model; ids may hold slashes."""
    check_model(model_id, services.codec)
    return _card(services.codec, http.app.state.created_s)


def _card(codec: Codec, created_s: int) -> dict[str, Any]:
    """`max_model_len` is what vLLM calls the context, and clients look for."""
    return {
        "id": codec.model_id,
        "object": "model",
        "created": created_s,
        "owned_by": "osd",
        "max_model_len": codec.context_tokens,
    }
