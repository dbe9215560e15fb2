"""Every field that the official `openai` client can send is known here, be it honoured or refused by its name."""

from __future__ import annotations

from typing import Any

import pytest
from openai.types import chat, responses, shared_params
from openai.types.responses import response_create_params
from pydantic import BaseModel

from serving.responses.items import CallItem, CallOutputItem, ItemText, MessageItem, ReasoningItem
from serving.responses.request import FunctionTool, InputTokensRequest, ReasoningOptions, ResponsesRequest, TextOptions
from serving.wire.chat_request import Message, TextPart
from serving.wire.request_base import StreamOptions
from serving.wire.tools import Function, Tool, ToolCall


def test_every_field_of_a_response_is_known() -> None:
    asked = response_create_params.ResponseCreateParamsBase.__annotations__.keys()
    assert asked | {"stream"} <= ResponsesRequest.model_fields.keys()


@pytest.mark.parametrize(
    ("asked", "model"),
    [
        (responses.FunctionToolParam, FunctionTool),
        (responses.ResponseTextConfigParam, TextOptions),
        (responses.EasyInputMessageParam, MessageItem),
        (responses.ResponseOutputMessageParam, MessageItem),
        (responses.ResponseInputTextParam, ItemText),
        (responses.ResponseOutputTextParam, ItemText),
        (responses.ResponseFunctionToolCallParam, CallItem),
        (responses.response_input_item_param.FunctionCallOutput, CallOutputItem),
        (responses.ResponseReasoningItemParam, ReasoningItem),
        (responses.InputTokenCountParams, InputTokensRequest),
        (shared_params.Reasoning, ReasoningOptions),
        (shared_params.FunctionDefinition, Function),
        (chat.ChatCompletionFunctionToolParam, Tool),
        (chat.ChatCompletionAssistantMessageParam, Message),
        (chat.ChatCompletionToolMessageParam, Message),
        (chat.ChatCompletionMessageFunctionToolCallParam, ToolCall),
        (chat.ChatCompletionContentPartTextParam, TextPart),
        (chat.ChatCompletionStreamOptionsParam, StreamOptions),
    ],
)
def test_every_field_of_what_a_request_of_the_client_holds_is_known(asked: Any, model: type[BaseModel]) -> None:
    known = {info.alias or name for name, info in model.model_fields.items()}
    assert asked.__annotations__.keys() <= known
