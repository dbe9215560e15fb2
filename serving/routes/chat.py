"""POST /v1/chat/completions."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from serving.answer import respond
from serving.guards.admission import admits
from serving.guards.routes import with_api_key
from serving.queries import build_queries, check_model, encode_aside
from serving.services import ServicesDep
from serving.wire.answers import ChatCompletion, ChatCompletionChunk
from serving.wire.chat_request import ChatRequest
from serving.wire.chat_view import ChatView
from serving.wire.errors import ApiError
from serving.wire.openapi import API_KEY, errors, whole_or_streamed

router = APIRouter(route_class=admits(with_api_key, API_KEY))


@router.post(
    "/v1/chat/completions",
    responses=whole_or_streamed(ChatCompletion, ChatCompletionChunk)
    | errors(400, 401, 404, 408, 413, 429, 500, 503, 504),
)
async def create_chat_completion(body: ChatRequest, http: Request, services: ServicesDep) -> Response:
    """Answer a conversation, streamed or whole."""
    codec = services.codec
    check_model(body.model, codec)
    messages = [message.for_template() for message in body.messages]
    num_chars = sum(len(message.text) for message in body.messages)
    try:
        prompt_ids = await encode_aside(codec.encode_chat, messages, num_chars)
    except ValueError as error:
        raise ApiError(400, str(error), param="messages", code="invalid_value") from error
    view = ChatView(codec, logprobs=body.logprobs)
    queries = build_queries(
        body,
        [prompt_ids],
        max_tokens=body.answer_limit,
        logprobs=body.num_logprobs,
        codec=codec,
        answer_id=view.id_prefix + http.state.request_id,
        param="messages",
        texts={f"messages[{index}].content": message.text for index, message in enumerate(body.messages)},
    )
    return await respond(http, services, body, view, queries)
