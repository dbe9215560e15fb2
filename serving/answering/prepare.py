"""From a chat request, in whichever API it came, to the engine's queries and the parser of their answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from osd.records.asked.constraint import ConstraintSpec
from osd.records.errors import ConstraintRefusedError
from osd.records.query import Request
from serving.answering.queries import (
    build_queries,
    check_model,
    check_template,
    encode_messages,
    query_domain,
    truncated,
)
from serving.forms.calls import argument_specs
from serving.forms.constraint import chat_constraint, checked
from serving.parsing.choose import answer_shape, parser_maker
from serving.parsing.pieces import AnswerParser
from serving.services import Services
from serving.wire.chat_request import ChatRequest


@dataclass(frozen=True, slots=True)
class PreparedChat:
    """A chat request, ready to be run."""

    queries: list[Request]
    prompt_ids: tuple[int, ...]
    new_parser: Callable[[], AnswerParser]
    """Makes a parser for one choice."""


async def prepare_chat(
    body: ChatRequest,
    services: Services,
    answer_id: str,
    *,
    key_domain: str | None,
    param: str = "messages",
    form_field: str = "response_format.json_schema.schema",
) -> PreparedChat:
    """Check the model, render the conversation and build the queries.

    Args:
        body: the request.
        services: of the app.
        answer_id: the queries are numbered after it.
        key_domain: the domain of the request's API key.
        param: the field that holds the conversation, for errors.
        form_field: the field that holds the schema of the answer, for errors.

    Raises:
        ConstraintRefusedError: the form of the answer, or a tool's schema, is no grammar that can be kept to.
        ApiError: the model is another, or its template or context cannot take the conversation or the tools.
    """
    codec = services.codec
    domain = query_domain(body.osd.domain, check_model(body.model, services.model_names), key_domain)
    check_template(body.chat_template, services.config.server)
    prompt_ids = await encode_messages(codec, body.messages, body.offered_tools, param, body.chat_options())
    prompt_ids = truncated(prompt_ids, body, codec)
    shape = answer_shape(body, codec, prompt_ids, services.config.target.tool_call_format)
    constraint = chat_constraint(body, codec, shape.call_format, reasoning=shape.reasoning)
    if constraint is not None and constraint.kind == "json_schema" and constraint.field.startswith("response_format"):
        constraint = replace(constraint, field=form_field)
    is_chat = param == "messages"
    queries = build_queries(
        body,
        [prompt_ids],
        max_tokens=body.answer_limit,
        logprobs=body.num_logprobs,
        prompt_logprobs=body.prompt_logprobs,
        codec=codec,
        answer_id=answer_id,
        param=param,
        domain=domain,
        constraint=await _checked(constraint, body),
        texts={f"messages[{at}].content": message.text for at, message in enumerate(body.messages)} if is_chat else {},
    )
    if shape.template is not None:  # its marks are special tokens, or among them
        queries = [replace(query, params=replace(query.params, skip_special_tokens=False)) for query in queries]
    return PreparedChat(queries, prompt_ids, parser_maker(body, shape))


async def _checked(constraint: ConstraintSpec | None, body: ChatRequest) -> ConstraintSpec | None:
    """As `checked`; where a tool's schema is what is refused, the error names it."""
    try:
        return await checked(constraint)
    except ConstraintRefusedError:
        for spec in argument_specs(body.callable_tools, must_call=body.must_call):
            await checked(spec)
        raise
