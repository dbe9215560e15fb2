"""Chooses the parser of an answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from osd.records.asked.constraint import ReasoningFirst as HasReasoning
from osd.text.chat_template import CallFormat
from serving.codec import Codec
from serving.parsing.pieces import AnswerParser, PlainText
from serving.parsing.reasoning import ReasoningFirst
from serving.parsing.tool_calls import call_parser
from serving.wire.chat_request import ChatRequest
from serving.wire.errors import ApiError

_PROMPT_END_TOKENS = 8


class AnswerShape(NamedTuple):
    """How the model writes its answer to a chat."""

    call_format: CallFormat | None
    """None where there are no tools."""
    reasoning: HasReasoning


def answer_shape(
    body: ChatRequest, codec: Codec, prompt_ids: Sequence[int], call_format: CallFormat | Literal["auto"]
) -> AnswerShape:
    """How the model writes its answer.

    Args:
        body: the request, for its tools.
        codec: knows the chat template.
        prompt_ids: the prompt, whose end shows whether the answer begins with open reasoning.
        call_format: the configured format.

    Raises:
        ApiError: 400, there are tools and no known format of calls.
    """
    known = codec.features.call_format if call_format == "auto" else call_format
    if body.offered_tools and known is None:
        message = (
            f"'tools': the chat template of {codec.model_id} shows no known format of tool calls; name one with the "
            "setting target.tool_call_format, or leave the tools out."
        )
        raise ApiError(400, message, param="tools", code="unsupported_parameter")
    reasoning: HasReasoning = "no"
    if codec.features.reasoning:
        is_open = codec.decode_all(prompt_ids[-_PROMPT_END_TOKENS:]).rstrip().endswith("<think>")
        reasoning = "open" if is_open else "optional"
    return AnswerShape(known if body.offered_tools else None, reasoning)


def parser_maker(body: ChatRequest, shape: AnswerShape) -> Callable[[], AnswerParser]:
    """A function that makes a new parser, one for each choice of an answer."""
    names = [tool.name for tool in body.offered_tools]

    def make() -> AnswerParser:
        max_calls = None if body.parallel_tool_calls else 1
        calls = None if shape.call_format is None else call_parser(shape.call_format, names, max_calls)
        parser = calls or PlainText()
        return parser if shape.reasoning == "no" else ReasoningFirst(parser, is_open=shape.reasoning == "open")

    return make
