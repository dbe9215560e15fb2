"""POST /v1/chat/completions."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from serving.answering.answer import respond
from serving.answering.beam_search import beam_search
from serving.answering.prepare import prepare_chat
from serving.answering.tokens import TokenFields
from serving.guards.admission import admits
from serving.guards.routes import key_domain, with_api_key
from serving.openapi import API_KEY, errors, whole_or_streamed
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
    answer_id = ChatView.id_prefix + http.state.answer_id
    chat = await prepare_chat(body, services, answer_id, key_domain=key_domain(http, services))
    view = ChatView(
        services.codec,
        logprobs=body.logprobs,
        new_parser=chat.new_parser,
        include_reasoning=body.include_reasoning,
        echoed=body.echoed,
        prompt_text=services.codec.decode_all(chat.prompt_ids) if body.return_prompt_text else None,
        tokens=TokenFields(body, services.codec, [chat.prompt_ids] * len(chat.queries)),
    )
    answer = ChoicesAnswer(
        answer_id=ChatView.id_prefix + body.request_id if body.request_id else answer_id,
        model=services.model_name(body.model),
        view=view,
        prompt_tokens=len(chat.prompt_ids),
        num_choices=len(chat.queries),
        options=body.stream_options or StreamOptions(),
    )
    return await respond(
        http,
        services,
        answer,
        chat.queries,
        stream=body.stream,
        interval=body.stream_interval,
        search=beam_search(body, services.codec, chat.queries),
    )
