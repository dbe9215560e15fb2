"""GET /v1/models and /v1/models/{id}: the model that is served."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from serving.answering.queries import check_model
from serving.codec import Codec
from serving.guards.admission import admits
from serving.guards.routes import with_api_key
from serving.openapi import API_KEY, errors
from serving.services import ServicesDep
from serving.wire.answers import ModelCard, ModelList

router = APIRouter(route_class=admits(with_api_key, API_KEY), responses=errors(401, 429, 500))


@router.get("/v1/models", responses={200: {"model": ModelList}})
async def list_models(http: Request, services: ServicesDep) -> Response:
    """The list of models: the one that is served."""
    cards = [_card(name, services.codec, http.app.state.created_s) for name in services.model_names]
    return JSONResponse({"object": "list", "data": cards})


@router.get("/v1/models/{model_id:path}", responses={200: {"model": ModelCard}, **errors(404)})
async def retrieve_model(model_id: str, http: Request, services: ServicesDep) -> Response:
    """The served model; its id may contain slashes."""
    check_model(model_id, services.model_names)
    return JSONResponse(_card(model_id, services.codec, http.app.state.created_s))


def _card(name: str, codec: Codec, created_s: int) -> dict[str, Any]:
    """With vLLM's fields, which clients look for: `max_model_len` is the context in tokens."""
    return {
        "id": name,
        "object": "model",
        "created": created_s,
        "owned_by": "osd",
        "root": codec.model_id,
        "parent": None,
        "max_model_len": codec.context_tokens,
    }
