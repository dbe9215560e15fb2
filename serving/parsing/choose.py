"""Chooses the parser of an answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from osd.records.asked.constraint import ReasoningFirst as HasReasoning
from osd.text.chat_template import CallFormat
from serving.answering.thinking import opens_reasoning
from serving.codec import Codec
from serving.parsing.pieces import AnswerParser, PlainText
from serving.parsing.reasoning import ReasoningFirst
from serving.parsing.template import TemplateParser
from serving.parsing.tool_calls import call_parser
from serving.wire.chat_request import ChatRequest
from serving.wire.errors import ApiError

_PROMPT_END_TOKENS = 64
"""Number of tokens at the prompt's end that hold all that a chat template writes of the answer's message."""


class AnswerShape(NamedTuple):
    """How the model writes its answer to a chat."""

    call_format: CallFormat | None
    """Format in which tools are called; None if there are no tools, or `template` reads the calls."""
    reasoning: HasReasoning
    template: Mapping[str, Any] | None = None
    """The tokenizer's response template, if answers are parsed by it; else None."""
    prompt_end: str = ""
    """The prompt's last tokens as text, special ones as they are spelt."""


def answer_shape(
    body: ChatRequest, codec: Codec, prompt_ids: Sequence[int], call_format: CallFormat | Literal["auto"]
) -> AnswerShape:
    """How the model writes its answer.

    With `auto`, an answer is read by the tokenizer's response template where there is one. Calls that are enforced are
    written and read in one of the known formats, since no grammar can be made of a template.

    Args:
        body: the request, for its tools.
        codec: knows the chat template.
        prompt_ids: the prompt, whose end shows whether the answer begins with open reasoning.
        call_format: the configured format.

    Raises:
        ApiError: 400, there are tools and no known format of calls.
    """
    features = codec.features
    known = features.call_format if call_format == "auto" else call_format
    template = None if call_format != "auto" or body.enforces_calls else features.response_template
    if body.offered_tools and known is None and template is None:
        raise _unknown_format(codec, is_enforced=features.response_template is not None)
    prompt_end = codec.decode_all(prompt_ids[-_PROMPT_END_TOKENS:])
    reasoning: HasReasoning = "no"
    if features.reasoning:
        reasoning = "open" if opens_reasoning(codec, prompt_ids) else "optional"
    if template is not None:
        return AnswerShape(None, reasoning, template, prompt_end)
    return AnswerShape(known if body.offered_tools else None, reasoning)


def _unknown_format(codec: Codec, *, is_enforced: bool) -> ApiError:
    if is_enforced:
        why = f"calls of {codec.model_id} cannot be enforced, for no grammar of them is known; let it choose"
    else:
        why = f"the chat template of {codec.model_id} shows no known format of tool calls; leave the tools out"
    message = f"'tools': {why}, or name a format with the setting target.tool_call_format."
    return ApiError(400, message, param="tools", code="unsupported_parameter")


def parser_maker(body: ChatRequest, shape: AnswerShape) -> Callable[[], AnswerParser]:
    """A function that makes a new parser, one for each choice of an answer."""
    names = [tool.name for tool in body.offered_tools]
    max_calls = None if body.parallel_tool_calls else 1

    def make() -> AnswerParser:
        if shape.template is not None:
            tools = [tool.for_template() for tool in body.offered_tools]
            return TemplateParser(shape.template, shape.prompt_end, names, max_calls, tools)
        calls = None if shape.call_format is None else call_parser(shape.call_format, names, max_calls)
        parser = calls or PlainText()
        return parser if shape.reasoning == "no" else ReasoningFirst(parser, is_open=shape.reasoning == "open")

    return make
