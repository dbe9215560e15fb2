"""POST /v1/responses and /v1/responses/input_tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from serving.answering.answer import observed_deltas, respond
from serving.answering.prepare import PreparedChat, prepare_chat
from serving.answering.queries import check_model, encode_messages
from serving.answering.sse import EventStream
from serving.guards.admission import admits
from serving.guards.routes import key_domain, owner_of, with_api_key
from serving.openapi import API_KEY, errors, whole_or_streamed
from serving.responses.answer import ResponsesAnswer
from serving.responses.answers import InputTokens, ResponseEvent, ResponseObject
from serving.responses.background import FRAMING
from serving.responses.items import Item
from serving.responses.request import InputTokensRequest, PromptFields, ResponsesRequest
from serving.responses.truncation import with_newest_turns
from serving.services import Services, ServicesDep
from serving.wire.chat_request import ChatRequest
from serving.wire.errors import ApiError

router = APIRouter(route_class=admits(with_api_key, API_KEY))


@router.post(
    "/v1/responses",
    responses=whole_or_streamed(ResponseObject, ResponseEvent) | errors(400, 401, 404, 408, 413, 429, 500, 503, 504),
)
async def create_response(body: ResponsesRequest, http: Request, services: ServicesDep) -> Response:
    """Answer an input, perhaps after a past response: whole, streamed, or in the background."""
    owner = owner_of(http, services)
    if body.background:
        services.background.check_room()
    if body.request_id is not None:
        services.background.check_unused(owner, body.request_id, "request_id")
    query_id = f"resp_{http.state.answer_id}"
    items = [*_past(body, owner, services), *body.input]

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

    def keep(response: dict[str, Any]) -> None:
        if body.store and not body.background:
            services.responses.put(owner, response, items)

    answer = ResponsesAnswer(
        answer_id=body.request_id or query_id,
        model=services.model_name(body.model),
        body=body,
        codec=services.codec,
        parser=chat.new_parser(),
        prompt_tokens=len(chat.prompt_ids),
        shows_special=not chat.queries[0].params.skip_special_tokens,
        keep=keep,
    )
    if not body.background:
        return await respond(http, services, answer, chat.queries, stream=body.stream)
    deltas = observed_deltas(http, services, chat.queries, pings=False)
    run = services.background.start(owner, answer, deltas, items)
    if body.stream:
        return EventStream(run.follow(0, services.config.server.ping_interval_s), FRAMING)
    return JSONResponse(run.answer.response)


@router.post(
    "/v1/responses/input_tokens",
    responses={200: {"model": InputTokens}, **errors(400, 401, 404, 408, 413, 429, 500)},
)
async def count_input_tokens(body: InputTokensRequest, http: Request, services: ServicesDep) -> Response:
    """How many tokens the prompt of such a response has."""
    codec = services.codec
    check_model(body.model, services.model_names)
    items = [*_past(body, owner_of(http, services), services), *(body.input or ())]
    if not items and not body.instructions:
        raise ApiError(400, "'input' is required.", param="input", code="missing_required_parameter")

    async def count(items: Sequence[Item]) -> int:
        chat = ChatRequest.converted(body.prompt_of_chat(items))
        prompt_ids = await encode_messages(codec, chat.messages, chat.offered_tools, "input", chat.chat_options())
        if body.truncation == "auto" and len(prompt_ids) >= codec.context_tokens:
            message = f"The newest turn alone has {len(prompt_ids)} tokens; the context holds {codec.context_tokens}."
            raise ApiError(400, message, param="input", code="context_length_exceeded")
        return len(prompt_ids)

    num_tokens = await (with_newest_turns(items, count) if body.truncation == "auto" and items else count(items))
    return JSONResponse({"object": "response.input_tokens", "input_tokens": num_tokens})


def _past(body: PromptFields, owner: str, services: Services) -> list[Item]:
    """What was said up to the end of the previous response, if one is named."""
    if body.previous_response_id is None:
        return []
    services.background.check_ended(owner, body.previous_response_id, "previous_response_id")
    return services.responses.items(owner, body.previous_response_id, "previous_response_id")
