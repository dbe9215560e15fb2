"""POST /v1/chat/completions."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from serving.answer import respond
from serving.guards.admission import admits
from serving.guards.routes import with_api_key
from serving.openapi import API_KEY, errors, whole_or_streamed
from serving.parsing.choose import parser_maker
from serving.queries import build_queries, check_model, encode_messages
from serving.services import ServicesDep
from serving.wire.answers import ChatCompletion, ChatCompletionChunk
from serving.wire.chat_request import ChatRequest
from serving.wire.chat_view import ChatView
from serving.wire.choices import ChoicesAnswer
from serving.wire.request_base import StreamOptions

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
    prompt_ids = await encode_messages(codec, body.messages, body.offered_tools)
    view = ChatView(
        codec,
        logprobs=body.logprobs,
        new_parser=parser_maker(body, codec, prompt_ids, services.config.target.tool_call_format),
        include_reasoning=body.include_reasoning,
    )
    answer_id = view.id_prefix + http.state.answer_id
    queries = build_queries(
        body,
        [prompt_ids],
        max_tokens=body.answer_limit,
        logprobs=body.num_logprobs,
        codec=codec,
        answer_id=answer_id,
        param="messages",
        texts={f"messages[{index}].content": message.text for index, message in enumerate(body.messages)},
    )
    answer = ChoicesAnswer(
        answer_id=answer_id,
        model=body.model,
        view=view,
        prompt_tokens=len(prompt_ids),
        num_choices=len(queries),
        options=body.stream_options or StreamOptions(),
    )
    return await respond(http, services, answer, queries, stream=body.stream)
