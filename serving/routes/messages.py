"""POST /v1/messages and /v1/messages/count_tokens, Anthropic's API."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from serving.answering.answer import respond
from serving.answering.prepare import prepare_chat
from serving.answering.queries import check_model, encode_messages
from serving.guards.admission import admits
from serving.guards.routes import key_domain, with_api_key
from serving.messages.answer import MessagesAnswer
from serving.messages.answers import AnthropicMessage, MessageEvent, TokenCount
from serving.messages.request import CountRequest, MessagesRequest, PromptFields
from serving.openapi import API_KEY, anthropic_errors, whole_or_streamed
from serving.services import Services, ServicesDep
from serving.wire.errors import ApiError

router = APIRouter(route_class=admits(with_api_key, API_KEY))


@router.post(
    "/v1/messages",
    responses=whole_or_streamed(AnthropicMessage, MessageEvent)
    | anthropic_errors(400, 401, 404, 408, 413, 429, 500, 503, 504),
)
async def create_message(body: MessagesRequest, http: Request, services: ServicesDep) -> Response:
    """Answer a conversation, streamed or whole."""
    _check_thinking(body, services)
    answer_id = f"msg_{http.state.answer_id}"
    domain = key_domain(http, services)
    chat = await prepare_chat(body.chat_request(), services, answer_id, key_domain=domain, form_field=body.form_field)
    answer = MessagesAnswer(
        answer_id=answer_id,
        model=body.model,
        parser=chat.new_parser(),
        prompt_tokens=len(chat.prompt_ids),
    )
    return await respond(http, services, answer, chat.queries, stream=body.stream)


@router.post(
    "/v1/messages/count_tokens",
    responses={200: {"model": TokenCount}, **anthropic_errors(400, 401, 404, 408, 413, 429, 500)},
)
async def count_tokens(body: CountRequest, services: ServicesDep) -> Response:
    """How many tokens the prompt of a conversation has."""
    _check_thinking(body, services)
    chat = body.chat_request()
    check_model(chat.model, services.model_names)
    prompt_ids = await encode_messages(services.codec, chat.messages, chat.offered_tools, options=chat.chat_options())
    return JSONResponse({"input_tokens": len(prompt_ids)})


def _check_thinking(body: PromptFields, services: Services) -> None:
    """Refuse (400) a budget of reasoning if the model does not reason."""
    if body.thinking is not None and body.thinking.type == "enabled" and not services.codec.features.reasoning:
        message = (
            f"'thinking': the chat template of {services.codec.model_id} has no <think>; leave it out, or send "
            '{"type": "adaptive"}.'
        )
        raise ApiError(400, message, param="thinking", code="unsupported_parameter")
