"""The items that a response's input and output consist of, and their conversion to a conversation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, TypeAdapter

from serving.wire.inert_fields import NoEffect, Unsupported, WireModel
from serving.wire.text import Text
from serving.wire.tools import Arguments, ToolName

_Status = Literal["in_progress", "completed", "incomplete"]
_Ignored = Annotated[Any, Field(description="Accepted and not used: part of an item that is sent back.")]
_Id = Annotated[Text, Field(min_length=1, max_length=256)]


class ItemText(WireModel):
    """A part of a message's text."""

    type: Literal["input_text", "output_text", "text"]
    text: Text
    annotations: Annotated[None, NoEffect([])] = None
    logprobs: _Ignored = None
    prompt_cache_breakpoint: Unsupported = None


def _texts(value: Any) -> Any:
    return [{"type": "input_text", "text": value}] if isinstance(value, str) else value


Texts = Annotated[list[ItemText], BeforeValidator(_texts, json_schema_input_type=str | list[ItemText])]


class MessageItem(WireModel):
    """A message of the input or of an earlier output."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Texts
    id: _Ignored = None
    status: _Status | None = None
    phase: _Ignored = None


class CallItem(WireModel):
    """A tool call by the model."""

    type: Literal["function_call"]
    call_id: _Id
    name: ToolName
    arguments: Arguments
    async_: Annotated[None, NoEffect(False)] = Field(default=None, alias="async")
    id: _Ignored = None
    status: _Status | None = None
    caller: Annotated[None, NoEffect({"type": "direct"})] = None
    namespace: Unsupported = None


class CallOutputItem(WireModel):
    """The result of a tool call."""

    type: Literal["function_call_output"]
    call_id: _Id
    output: Texts
    name: Annotated[Text | None, Field(description="The tool's; chat templates may write it.")] = None
    id: _Ignored = None
    status: _Status | None = None
    caller: Annotated[None, NoEffect({"type": "direct"})] = None
    namespace: Unsupported = None


class ReasoningText(WireModel):
    """A part of the reasoning."""

    type: Literal["reasoning_text", "summary_text"]
    text: Text


class ReasoningItem(WireModel):
    """The model's reasoning before an earlier answer."""

    type: Literal["reasoning"]
    summary: list[ReasoningText] = []
    content: list[ReasoningText] = []
    encrypted_content: Unsupported = None
    id: _Ignored = None
    status: _Status | None = None


def _type(value: Any) -> Any:
    """The type of an item; messages may omit it."""
    return value.get("type", "message") if isinstance(value, dict) else getattr(value, "type", None)


Item = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[CallItem, Tag("function_call")]
    | Annotated[CallOutputItem, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")],
    Discriminator(_type),
]
ITEMS: TypeAdapter[list[Item]] = TypeAdapter(list[Item])


def conversation(items: Sequence[Item]) -> list[dict[str, Any]]:
    """The messages of a chat request. Consecutive reasoning, text and calls become one assistant message."""
    messages: list[dict[str, Any]] = []
    assistant: dict[str, Any] | None = None
    """The last message, while it can be extended."""

    def of_assistant(takes_text: bool = False) -> dict[str, Any]:
        nonlocal assistant
        if assistant is None or (takes_text and (assistant["content"] or assistant["tool_calls"])):
            assistant = {"role": "assistant", "content": "", "tool_calls": [], "reasoning_content": ""}
            messages.append(assistant)
        return assistant

    for item in items:
        match item:
            case ReasoningItem():
                texts = [part.text for part in item.content or item.summary]
                of_assistant(takes_text=True)["reasoning_content"] += "\n".join(texts)
            case MessageItem(role="assistant"):
                of_assistant(takes_text=True)["content"] = _parts(item.content) or ""
            case CallItem():
                function = {"name": item.name, "arguments": item.arguments}
                call = {"id": item.call_id, "type": "function", "function": function}
                of_assistant()["tool_calls"].append(call)
            case CallOutputItem():
                assistant = None
                result = {
                    "role": "tool",
                    "tool_call_id": item.call_id,
                    "content": _parts(item.output),
                    "name": item.name,
                }
                messages.append(result)
            case MessageItem():
                assistant = None
                messages.append({"role": item.role, "content": _parts(item.content)})
    return messages


def _parts(texts: Sequence[ItemText]) -> list[dict[str, str]]:
    return [{"type": "text", "text": part.text} for part in texts]
