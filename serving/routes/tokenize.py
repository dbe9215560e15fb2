"""POST /tokenize and /detokenize, with vLLM's fields and paths."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from pydantic import Field, ValidationInfo, field_validator

from serving.answering.queries import check_model, check_template, check_token_ids, encode_aside, encode_messages
from serving.guards.admission import admits
from serving.guards.routes import with_api_key
from serving.openapi import API_KEY, errors
from serving.services import ServicesDep
from serving.wire.answers import Detokenized, Tokens
from serving.wire.chat_request import Message, TemplateFields
from serving.wire.errors import ApiError
from serving.wire.inert_fields import NoEffect, WireModel
from serving.wire.text import Text
from serving.wire.tools import Tools

router = APIRouter(route_class=admits(with_api_key, API_KEY), responses=errors(400, 401, 404, 408, 413, 429, 500))


class TokenizeRequest(TemplateFields):
    """A text (`prompt`) or a conversation (`messages`) to turn into token ids.

    Example: `{"prompt": "Once upon a time", "return_token_strs": true}`
    """

    model: str | None = None
    prompt: Text | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    add_special_tokens: bool | None = Field(
        default=None,
        description="Those that the tokenizer puts around a text; by default true for a prompt, false for messages.",
    )
    return_token_strs: bool = False
    mm_processor_kwargs: Annotated[None, NoEffect({})] = None
    tools: Tools = Field(default=[], description="Of a conversation: what the model may call.")

    @field_validator("messages")
    @classmethod
    def _one_of_both(cls, value: list[Message] | None, info: ValidationInfo) -> list[Message] | None:
        if info.data.get("prompt") is not None:
            raise ValueError("give either prompt or messages")
        return value


class DetokenizeRequest(WireModel):
    """Token ids to turn into text.

    Example: `{"tokens": [504, 338, 253]}`
    """

    model: str | None = None
    tokens: list[int]


@router.post("/tokenize", responses={200: {"model": Tokens}})
async def tokenize(body: TokenizeRequest, services: ServicesDep) -> Response:
    """The token ids of a text, as /v1/completions reads it, or of a conversation, as /v1/chat/completions does."""
    codec = services.codec
    check_model(body.model, services.model_names)
    if body.messages is not None:
        check_template(body.chat_template, services.config.server)
        options = replace(body.chat_options(), add_special_tokens=bool(body.add_special_tokens))
        ids = await encode_messages(codec, body.messages, [tool.function for tool in body.tools], options=options)
    elif body.prompt is None:
        message = "Give either 'prompt' or 'messages'."
        raise ApiError(400, message, param="prompt", code="missing_required_parameter")
    else:
        prompt, add_special_tokens = body.prompt, body.add_special_tokens is not False

        def encode(text: str) -> tuple[int, ...]:
            return codec.encode_text(text, add_special_tokens=add_special_tokens)

        ids = await encode_aside(encode, prompt, len(prompt))
    return JSONResponse(
        {
            "count": len(ids),
            "max_model_len": codec.context_tokens,
            "tokens": list(ids),
            "token_strs": [codec.token_text(token_id) for token_id in ids] if body.return_token_strs else None,
        }
    )


@router.post("/detokenize", responses={200: {"model": Detokenized}})
async def detokenize(body: DetokenizeRequest, services: ServicesDep) -> Response:
    """The text of token ids, special tokens included."""
    codec = services.codec
    check_model(body.model, services.model_names)
    check_token_ids(body.tokens, codec, "tokens")
    return JSONResponse({"prompt": await asyncio.to_thread(codec.decode_all, body.tokens)})
