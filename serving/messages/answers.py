"""Models of /v1/messages' answers, for the OpenAPI schema."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from serving.wire.answers import OsdStats

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]


class TextContent(BaseModel):
    """Text for the user."""

    type: Literal["text"]
    text: str


class ThinkingContent(BaseModel):
    """The model's reasoning; the signature is empty."""

    type: Literal["thinking"]
    thinking: str
    signature: str


class ToolUseContent(BaseModel):
    """A tool call. Arguments that are not a JSON object are text under `arguments`."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


ContentBlock = Annotated[TextContent | ThinkingContent | ToolUseContent, Field(discriminator="type")]


class MessageUsage(BaseModel):
    """Token counts; input tokens do not include cached ones."""

    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None


class AnthropicMessage(BaseModel):
    """The answer to POST /v1/messages."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[ContentBlock]
    stop_reason: StopReason | None
    stop_sequence: str | None
    usage: MessageUsage
    osd: OsdStats | None = None


class Stopped(BaseModel):
    """The reason why the answer ended."""

    stop_reason: StopReason
    stop_sequence: str | None


class BlockDelta(BaseModel):
    """What an event adds to a block; which field is set depends on `type`."""

    type: Literal["text_delta", "thinking_delta", "input_json_delta"]
    text: str | None = None
    thinking: str | None = None
    partial_json: str | None = None


class MessageEvent(BaseModel):
    """One event of a stream, with the fields of its type, as in Anthropic's API. An error is an AnthropicError."""

    type: Literal[
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
        "ping",
    ]
    message: AnthropicMessage | None = None
    index: int | None = None
    content_block: ContentBlock | None = None
    delta: BlockDelta | Stopped | None = None
    usage: MessageUsage | None = None
    osd: OsdStats | None = None


class TokenCount(BaseModel):
    """The answer to POST /v1/messages/count_tokens."""

    input_tokens: int


class AnthropicErrorDetail(BaseModel):
    """An error."""

    type: str
    message: str


class AnthropicError(BaseModel):
    """The body of every answer of /v1/messages other than 2xx, and of an error event in a stream."""

    type: Literal["error"]
    error: AnthropicErrorDetail
