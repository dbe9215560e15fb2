"""GET, DELETE and cancel of /v1/responses/{id}, and its input items."""

from __future__ import annotations

import json
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response

from serving.answering.sse import Events, EventStream
from serving.guards.admission import admits
from serving.guards.routes import owner_of, with_api_key
from serving.openapi import API_KEY, errors, whole_or_streamed
from serving.responses.answers import DeletedResponse, InputItemList, ResponseEvent, ResponseObject
from serving.responses.background import FRAMING
from serving.responses.input_items import Order, input_item_page
from serving.services import ServicesDep
from serving.wire.errors import ApiError

router = APIRouter(route_class=admits(with_api_key, API_KEY))


@router.get(
    "/v1/responses/{response_id}",
    responses=whole_or_streamed(ResponseObject, ResponseEvent) | errors(400, 401, 404, 429, 500),
)
async def retrieve_response(
    response_id: str,
    http: Request,
    services: ServicesDep,
    stream: bool = False,
    starting_after: Annotated[int | None, Query(ge=0, description="Number of the event before the first.")] = None,
    include_obfuscation: bool = False,
) -> Response:
    """A response as it is now, or its events; one that was stored and not forgotten since, or is being made."""
    if include_obfuscation:
        message = "'include_obfuscation' is not supported by osd: leave it out, or send false."
        raise ApiError(400, message, param="include_obfuscation", code="unsupported_parameter")
    if starting_after is not None and not stream:
        message = "'starting_after' is allowed only with stream: true."
        raise ApiError(400, message, param="starting_after", code="invalid_value")
    owner, start = owner_of(http, services), 0 if starting_after is None else starting_after + 1
    run = services.background.find(owner, response_id)
    if run is not None and stream:
        return EventStream(run.follow(start, services.config.server.ping_interval_s), FRAMING)
    if run is not None:
        return JSONResponse(run.answer.response)
    response = services.responses.response(owner, response_id)
    if not stream:
        return JSONResponse(response)
    if not response["background"]:
        message = "'stream': only a response that was made with background: true is sent as events again."
        raise ApiError(400, message, param="stream", code="invalid_value")
    return EventStream(_replayed(services.responses.events(owner, response_id)[start:]), FRAMING)


@router.delete(
    "/v1/responses/{response_id}", responses={200: {"model": DeletedResponse}, **errors(401, 404, 408, 413, 429, 500)}
)
async def delete_response(response_id: str, http: Request, services: ServicesDep) -> Response:
    """Forget a past response; those that continued it keep what was said. One that is being made is cancelled."""
    owner = owner_of(http, services)
    run = services.background.find(owner, response_id)
    if run is not None:
        await run.cancel()
    services.responses.delete(owner, response_id)
    return JSONResponse({"id": response_id, "object": "response", "deleted": True})


@router.post(
    "/v1/responses/{response_id}/cancel",
    responses={200: {"model": ResponseObject}, **errors(400, 401, 404, 408, 413, 429, 500)},
)
async def cancel_response(response_id: str, http: Request, services: ServicesDep) -> Response:
    """End a response in the background where it is; one that has ended is left as it is."""
    owner = owner_of(http, services)
    run = services.background.find(owner, response_id)
    if run is not None:
        await run.cancel()
        return JSONResponse(run.answer.response)
    response = services.responses.response(owner, response_id)
    if not response["background"]:
        message = f"'response_id': '{response_id}' was not made with background: true, so it cannot be cancelled."
        raise ApiError(400, message, param="response_id", code="invalid_value")
    return JSONResponse(response)


@router.get(
    "/v1/responses/{response_id}/input_items",
    responses={200: {"model": InputItemList}, **errors(400, 401, 404, 429, 500)},
)
async def list_input_items(
    response_id: str,
    http: Request,
    services: ServicesDep,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Order = "desc",
    after: Annotated[str | None, Query(description="Id of the item before the first.")] = None,
) -> Response:
    """What came before a response's output: its input, after what was said in the responses that it continues."""
    owner = owner_of(http, services)
    run = services.background.find(owner, response_id)
    items = services.responses.input_items(owner, response_id) if run is None else run.items
    return JSONResponse(input_item_page(response_id, items, order=order, limit=limit, after=after))


async def _replayed(events: tuple[str, ...]) -> Events:
    for event in events:
        yield json.loads(event)
