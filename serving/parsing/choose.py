"""Chooses the parser of an answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from osd.text.chat_template import CallFormat
from serving.codec import Codec
from serving.parsing.pieces import AnswerParser, PlainText
from serving.parsing.reasoning import ReasoningFirst
from serving.parsing.tool_calls import call_parser
from serving.wire.chat_request import ChatRequest
from serving.wire.errors import ApiError

_PROMPT_END_TOKENS = 8


def parser_maker(
    body: ChatRequest, codec: Codec, prompt_ids: Sequence[int], call_format: CallFormat | Literal["auto"]
) -> Callable[[], AnswerParser]:
    """A function that makes a new parser, one for each choice of an answer.

    Args:
        body: the request, for its tools.
        codec: knows the chat template.
        prompt_ids: the prompt, whose end shows whether the answer begins with open reasoning.
        call_format: the configured format.

    Raises:
        ApiError: 400, there are tools but no known call format.
        ApiError: 400, there are tools and no known format of calls.
    """
    names = [tool.name for tool in body.offered_tools]
    known = codec.features.call_format if call_format == "auto" else call_format
    if names and known is None:
        message = (
            f"'tools': the chat template of {codec.model_id} shows no known format of tool calls; name one with the "
            "setting target.tool_call_format, or leave the tools out."
        )
        raise ApiError(400, message, param="tools", code="unsupported_parameter")
    has_reasoning = codec.features.reasoning
    is_open = has_reasoning and codec.decode_all(prompt_ids[-_PROMPT_END_TOKENS:]).rstrip().endswith("<think>")

    def make() -> AnswerParser:
        max_calls = None if body.parallel_tool_calls else 1
        parser = call_parser(known, names, max_calls) if names and known is not None else PlainText()
        return ReasoningFirst(parser, is_open=is_open) if has_reasoning else parser

    return make
