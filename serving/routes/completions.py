"""POST /v1/completions."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter, Request
from fastapi.responses import Response

from serving.answering.answer import respond
from serving.answering.beam_search import beam_search
from serving.answering.queries import (
    build_queries,
    check_model,
    check_num_choices,
    encode_aside,
    query_domain,
    truncated,
)
from serving.answering.tokens import TokenFields
from serving.forms.constraint import checked, one_form
from serving.guards.admission import admits
from serving.guards.routes import key_domain, with_api_key
from serving.openapi import API_KEY, errors, whole_or_streamed
from serving.services import ServicesDep
from serving.wire.answers import Completion, CompletionChunk
from serving.wire.choices import ChoicesAnswer
from serving.wire.completions_request import CompletionRequest
from serving.wire.completions_view import CompletionView
from serving.wire.errors import ApiError
from serving.wire.request_base import StreamOptions

router = APIRouter(route_class=admits(with_api_key, API_KEY))


@router.post(
    "/v1/completions",
    responses=whole_or_streamed(Completion, CompletionChunk) | errors(400, 401, 404, 408, 413, 429, 500, 503, 504),
)
async def create_completion(body: CompletionRequest, http: Request, services: ServicesDep) -> Response:
    """Continue one or several texts, streamed or whole."""
    codec = services.codec
    domain = query_domain(body.osd.domain, check_model(body.model, services.model_names), key_domain(http, services))
    check_num_choices(len(body.prompt), body.n)
    if body.max_tokens == 0 and not body.echo:
        message = "'max_tokens' is 0, which is for echo: true; give at least 1 without it."
        raise ApiError(400, message, param="max_tokens", code="invalid_value")
    num_chars = sum(len(prompt) for prompt in body.prompt if isinstance(prompt, str))
    encode = partial(codec.encode_text, add_special_tokens=body.add_special_tokens)
    encoded = [
        await encode_aside(encode, prompt, num_chars) if isinstance(prompt, str) else tuple(prompt)
        for prompt in body.prompt
    ]
    prompts = [truncated(prompt_ids, body, codec) for prompt_ids in encoded]
    view = CompletionView(
        codec,
        prompts,
        choices_per_prompt=body.n,
        logprobs=body.logprobs is not None,
        tokens=TokenFields(body, codec, [prompt_ids for prompt_ids in prompts for _ in range(body.n)]),
        echoed=[codec.decode_all(prompt_ids) for prompt_ids in prompts] if body.echo else (),
    )
    answer_id = view.id_prefix + http.state.answer_id
    queries = build_queries(
        body,
        prompts,
        max_tokens=body.answer_limit,
        logprobs=body.logprobs,
        prompt_logprobs=body.num_prompt_logprobs,
        codec=codec,
        answer_id=answer_id,
        param="prompt",
        domain=domain,
        constraint=await checked(one_form(body.constraint_specs())),
    )
    answer = ChoicesAnswer(
        answer_id=view.id_prefix + body.request_id if body.request_id else answer_id,
        model=services.model_name(body.model),
        view=view,
        prompt_tokens=sum(map(len, prompts)),
        num_choices=len(queries),
        options=body.stream_options or StreamOptions(),
    )
    return await respond(
        http,
        services,
        answer,
        queries,
        stream=body.stream,
        interval=body.stream_interval,
        search=beam_search(body, codec, queries),
    )
