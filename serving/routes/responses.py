"""POST /v1/responses; GET and DELETE /v1/responses/{id}."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from serving.answering.answer import respond
from serving.answering.prepare import PreparedChat, prepare_chat
from serving.guards.admission import admits
from serving.guards.api_keys import api_key
from serving.guards.routes import key_domain, with_api_key
from serving.openapi import API_KEY, errors, whole_or_streamed
from serving.parsing.pieces import PlainText
from serving.responses.answer import ResponsesAnswer
from serving.responses.answers import DeletedResponse, ResponseEvent, ResponseObject
from serving.responses.items import ITEMS, Item
from serving.responses.request import ResponsesRequest
from serving.responses.truncation import with_newest_turns
from serving.services import Services, ServicesDep
from serving.wire.errors import ApiError

router = APIRouter(route_class=admits(with_api_key, API_KEY))


@router.post(
    "/v1/responses",
    responses=whole_or_streamed(ResponseObject, ResponseEvent) | errors(400, 401, 404, 408, 413, 429, 500, 503, 504),
)
async def create_response(body: ResponsesRequest, http: Request, services: ServicesDep) -> Response:
    """Answer an input, perhaps after a past response, streamed or whole."""
    owner, past = _owner(http, services), []
    if body.previous_response_id is not None:
        past = services.responses.items(owner, body.previous_response_id, "previous_response_id")
    query_id = f"resp_{http.state.answer_id}"
    if body.request_id is not None:
        services.responses.check_unused(owner, body.request_id, "request_id")
    items = [*past, *body.input]

    async def prepare(items: Sequence[Item]) -> PreparedChat:
        return await prepare_chat(
            body.chat_request(items),
            services,
            query_id,
            key_domain=key_domain(http, services),
            param="input",
            form_field="text.format.schema",
        )

    chat = await (with_newest_turns(items, prepare) if body.truncation == "auto" else prepare(items))
    parser = chat.new_parser()
    if body.wants_logprobs and not isinstance(parser, PlainText):
        message = "'include': log-probabilities are told of plain answers only, without tools or reasoning; ask a chat."
        raise ApiError(400, message, param="include", code="unsupported_parameter")

    def keep(response: dict[str, Any]) -> None:
        if body.store:
            output = [item for item in response["output"] if _can_be_sent_back(item)]
            services.responses.put(owner, response, [*items, *ITEMS.validate_python(output)])

    answer = ResponsesAnswer(
        answer_id=body.request_id or query_id,
        body=body,
        codec=services.codec,
        parser=parser,
        prompt_tokens=len(chat.prompt_ids),
        keep=keep,
    )
    return await respond(http, services, answer, chat.queries, stream=body.stream)


@router.get(
    "/v1/responses/{response_id}", responses={200: {"model": ResponseObject}, **errors(400, 401, 404, 429, 500)}
)
async def retrieve_response(response_id: str, http: Request, services: ServicesDep) -> Response:
    """A past response that was stored, and not forgotten since."""
    if http.query_params.get("stream", "false").lower() not in ("false", "0"):
        message = "'stream' is not supported by osd: a past response is sent whole."
        raise ApiError(400, message, param="stream", code="unsupported_parameter")
    return JSONResponse(services.responses.response(_owner(http, services), response_id))


@router.delete(
    "/v1/responses/{response_id}", responses={200: {"model": DeletedResponse}, **errors(401, 404, 408, 413, 429, 500)}
)
async def delete_response(response_id: str, http: Request, services: ServicesDep) -> Response:
    """Forget a past response; those that continued it keep what was said."""
    services.responses.delete(_owner(http, services), response_id)
    return JSONResponse({"id": response_id, "object": "response", "deleted": True})


def _owner(http: Request, services: Services) -> str:
    """Whose responses these are: those of the API key, or everybody's where none is asked for."""
    has_keys = bool(services.config.server.api_keys_sha256)
    return sha256((api_key(http.headers) or "").encode()).hexdigest() if has_keys else ""


def _can_be_sent_back(item: dict[str, Any]) -> bool:
    """Not so a call whose arguments were cut off, which no template can write out."""
    return not (item["type"] == "function_call" and item["status"] == "incomplete")
