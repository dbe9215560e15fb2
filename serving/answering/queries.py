"""Turns a request body into the engine's queries."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TypeVar

from osd.config.server import ServerConfig
from osd.records.asked.constraint import ConstraintSpec
from osd.records.query import DEFAULT_DOMAIN, DOMAIN_PATTERN, Request
from osd.text.chat_template import DEFAULT_OPTIONS, ChatOptions
from serving.answering.sampling import sampling_params
from serving.answering.thinking import thinking_limit
from serving.codec import Codec
from serving.wire.chat_request import Message
from serving.wire.errors import ApiError
from serving.wire.request_base import MAX_CHOICES, GenerationFields
from serving.wire.tools import Function

A = TypeVar("A")
_NO_TEXTS: Mapping[str, str] = MappingProxyType({})

# Longer texts are tokenised in a thread, since they would delay other requests' streams noticeably.
_INLINE_CHARS = 8192
# Token ids from here on do not fit the tokenizers' integer type.
_MOST_IDS = 2**31


async def encode_aside(encode: Callable[[A], tuple[int, ...]], argument: A, num_chars: int) -> tuple[int, ...]:
    """Tokenise a text; a long one in a thread, so that it does not block the event loop.

    Args:
        encode: the tokenizer's method.
        argument: its argument.
        num_chars: length of all texts tokenised for the request.
    """
    return encode(argument) if num_chars <= _INLINE_CHARS else await asyncio.to_thread(encode, argument)


async def encode_messages(
    codec: Codec,
    messages: Sequence[Message],
    tools: Sequence[Function] = (),
    param: str = "messages",
    options: ChatOptions = DEFAULT_OPTIONS,
) -> tuple[int, ...]:
    """Token ids of a conversation, by default ending where the assistant's answer begins.

    Args:
        codec: knows the chat template.
        messages: the conversation.
        tools: what the model may call.
        param: the field that holds the messages, for errors.
        options: how the conversation is rendered.

    Raises:
        ApiError: 400, the model's chat template refuses it, or does without tools.
    """
    brings_template = options.template is not None
    if options.template is None:
        features = codec.features
    else:
        features = await asyncio.to_thread(codec.features_of, options.template)
    if tools and not features.tools:
        raise _no_tools(codec, "tells the model of no tools", "tools")
    if not features.calls and any(message.tool_calls for message in messages):
        raise _no_tools(codec, "writes no tool calls of earlier turns", param)
    shaped = [message.for_template() for message in messages]
    told = [tool.for_template() for tool in tools]
    num_chars = sum(len(message.text) for message in messages) + (len(json.dumps(told)) if told else 0)

    def encode(_: object) -> tuple[int, ...]:
        return codec.encode_chat(shaped, told, options)

    try:
        return await (asyncio.to_thread(encode, None) if brings_template else encode_aside(encode, None, num_chars))
    except ValueError as error:
        param = "chat_template" if brings_template else param
        raise ApiError(400, str(error), param=param, code="invalid_value") from error


def check_template(template: str | None, server: ServerConfig) -> None:
    """Refuse (400) a chat template that a request brings, unless the operator trusts requests with that."""
    if template is not None and not server.trust_request_chat_template:
        message = (
            "'chat_template': this server runs its own template only; leave it out (the operator may allow it with "
            "--trust-request-chat-template)."
        )
        raise ApiError(400, message, param="chat_template", code="unsupported_parameter")


def _no_tools(codec: Codec, what: str, param: str) -> ApiError:
    message = f"'{param}': the chat template of {codec.model_id} {what}; leave them out, or serve a model with tools."
    return ApiError(400, message, param=param, code="unsupported_parameter")


def check_model(model: str | None, names: Sequence[str]) -> str | None:
    """The domain that follows the model's name (`smollm2:sql`), if one does.

    Args:
        model: as asked for; None is the one that is served.
        names: of the model that is served.

    Raises:
        ApiError: 404, the model is another.
    """
    if model is None or model in names:
        return None
    for name in sorted(names, key=len, reverse=True):
        domain = model.removeprefix(f"{name}:")
        if domain != model and re.fullmatch(DOMAIN_PATTERN, domain):
            return domain
    served = ", ".join(f"'{name}'" for name in names)
    message = f"The model '{model}' does not exist; this server serves {served}."
    raise ApiError(404, message, param="model", code="model_not_found")


def query_domain(asked: str | None, of_model: str | None, of_key: str | None) -> str | None:
    """The domain of a request's queries: the one that it names, else its model's, else its API key's; None: none."""
    return asked or of_model or of_key


def check_num_choices(num_prompts: int, n: int) -> None:
    """Refuse (400) a request for too many choices, before any work is done for them."""
    if num_prompts * n > MAX_CHOICES:
        message = f"At most {MAX_CHOICES} choices (prompts times n) a request."
        raise ApiError(400, message, param="n", code="invalid_value")


def build_queries(
    body: GenerationFields,
    prompts: Sequence[tuple[int, ...]],
    *,
    max_tokens: int | None,
    logprobs: int | None,
    codec: Codec,
    answer_id: str,
    param: str,
    domain: str | None,
    prompt_logprobs: int | None = None,
    constraint: ConstraintSpec | None = None,
    texts: Mapping[str, str] = _NO_TEXTS,
) -> list[Request]:
    """`n` queries per prompt. `max_tokens` (None: all that fits) is limited by the context.

    Args:
        body: the fields that both kinds of request share.
        prompts: token ids of each prompt.
        max_tokens: most tokens of one answer.
        logprobs: number of alternatives; None for no log-probabilities.
        codec: knows the context and the vocabulary.
        answer_id: prefix of the queries' ids.
        param: name of the field that holds the prompts, for errors.
        domain: label of the queries; None: nobody named one.
        prompt_logprobs: as `logprobs`, for the prompt's tokens.
        constraint: what each answer may be; None: anything.
        texts: for errors: the texts that make up the prompt, by field name.

    Raises:
        ApiError: a prompt is empty or too long, or holds unknown token ids.
    """
    queries: list[Request] = []
    for number, prompt_ids in enumerate(prompts):
        _check_prompt(prompt_ids, codec, f"{param}[{number}]" if len(prompts) > 1 else param, texts)
        room = codec.context_tokens - len(prompt_ids)
        limit = codec.sampling_defaults.max_new_tokens or room if max_tokens is None else max_tokens
        params = sampling_params(
            body,
            codec,
            max_tokens=min(limit, room),
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
        )
        thinking = thinking_limit(body.thinking_token_budget, codec, prompt_ids)
        for _ in range(body.n):
            choice = len(queries)
            query = Request(
                request_id=f"{answer_id}-{choice}",
                prompt_ids=prompt_ids,
                params=params if body.seed is None else replace(params, seed=body.seed + choice),
                domain=domain or DEFAULT_DOMAIN,
                domain_from="named" if domain else "none",
                store=body.store,
                speculation_length=body.osd.speculation_length,
                priority=body.priority,
                constraint=constraint,
                thinking=thinking,
                cache_salt=body.cache_salt or "",
            )
            queries.append(query)
    return queries


def truncated(prompt_ids: tuple[int, ...], body: GenerationFields, codec: Codec) -> tuple[int, ...]:
    """The prompt as far as `truncate_prompt_tokens` lets it be."""
    most = body.truncate_prompt_tokens
    if most is None:
        return prompt_ids
    if most < 0:
        most = codec.context_tokens - 1
    return prompt_ids[:most] if body.truncation_side == "right" else prompt_ids[-most:]


def _check_prompt(prompt_ids: tuple[int, ...], codec: Codec, param: str, texts: Mapping[str, str]) -> None:
    if not prompt_ids:
        raise ApiError(400, f"'{param}' holds no token.", param=param, code="invalid_value")
    check_token_ids(prompt_ids, codec, param, texts)
    if len(prompt_ids) >= codec.context_tokens:
        message = (
            f"The context of {codec.model_id} holds {codec.context_tokens} tokens, prompt and answer together; "
            f"the prompt has {len(prompt_ids)}, which leaves no room for an answer. Shorten the prompt."
        )
        raise ApiError(400, message, param=param, code="context_length_exceeded")


def check_token_ids(token_ids: Sequence[int], codec: Codec, param: str, texts: Mapping[str, str] = _NO_TEXTS) -> None:
    """400 for an id that the model lacks.

    Args:
        token_ids: to be checked.
        codec: knows the vocabulary.
        param: the field that holds them, for the error.
        texts: the texts that they were made of, by field, so that the error can name that of the unknown token.
    """
    foreign = next((token_id for token_id in token_ids if not 0 <= token_id < codec.vocab_tokens), None)
    if foreign is None:
        return
    text = codec.token_text(foreign) if 0 <= foreign < _MOST_IDS else ""
    param = next((field for field, whole in texts.items() if text and text in whole), param)
    named = f"the token {text!r} (id {foreign})" if text else f"the token id {foreign}"
    message = f"'{param}' holds {named}, which {codec.model_id} lacks: its ids are 0 to {codec.vocab_tokens - 1}."
    raise ApiError(400, message, param=param, code="invalid_value")
