"""The body of POST /v1/messages (Anthropic's API), and its conversion to a chat request."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator

from osd.records.query import MAX_STOPS
from serving.wire.chat_request import ChatRequest, ReasoningEffort
from serving.wire.inert_fields import NoEffect, Unsupported, WireModel
from serving.wire.request_base import Label, OsdOptions, StopString
from serving.wire.text import Text
from serving.wire.tools import JsonSchema, ToolName, unclashing

CacheControl = Annotated[
    None,
    NoEffect({"type": "ephemeral"}, {"type": "ephemeral", "ttl": "5m"}, {"type": "ephemeral", "ttl": "1h"}),
]
_Id = Annotated[Text, Field(min_length=1, max_length=256)]


class TextBlock(WireModel):
    """Text."""

    type: Literal["text"]
    text: Text
    cache_control: CacheControl = None
    citations: Annotated[None, NoEffect([])] = None


def _blocks(value: Any) -> Any:
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


Texts = Annotated[list[TextBlock], BeforeValidator(_blocks, json_schema_input_type=str | list[TextBlock])]


class ThinkingBlock(WireModel):
    """The model's reasoning in an earlier answer."""

    type: Literal["thinking"]
    thinking: Text
    signature: Annotated[str, Field(description="Accepted and not used.")] = ""


class ToolUseBlock(WireModel):
    """A tool call in an earlier answer."""

    type: Literal["tool_use"]
    id: _Id
    name: ToolName
    input: JsonSchema
    cache_control: CacheControl = None
    caller: Annotated[None, NoEffect({"type": "direct"})] = None


class ToolResultBlock(WireModel):
    """The result of a tool call."""

    type: Literal["tool_result"]
    tool_use_id: _Id
    content: Texts = []
    is_error: Annotated[bool, Field(description="Accepted and not used: the content tells.")] = False
    cache_control: CacheControl = None


Block = Annotated[TextBlock | ThinkingBlock | ToolUseBlock | ToolResultBlock, Field(discriminator="type")]
_OF_ASSISTANT = (ThinkingBlock, ToolUseBlock)


class Turn(WireModel):
    """One message of the conversation."""

    role: Literal["user", "assistant"]
    content: Annotated[list[Block], BeforeValidator(_blocks, json_schema_input_type=str | list[Block])]

    @field_validator("content")
    @classmethod
    def _of_the_role(cls, value: list[Block], info: ValidationInfo) -> list[Block]:
        role = info.data.get("role")
        for block in value:
            if role == "user" and isinstance(block, _OF_ASSISTANT):
                raise ValueError(f"a user's message holds no {block.type}")
            if role == "assistant" and isinstance(block, ToolResultBlock):
                raise ValueError("an assistant's message holds no tool_result")
        return value

    def as_chat(self) -> list[dict[str, Any]]:
        """The messages of a chat request, where tool results are messages of their own."""
        texts = [{"type": "text", "text": block.text} for block in self.content if isinstance(block, TextBlock)]
        results = [
            {"role": "tool", "tool_call_id": block.tool_use_id, "content": _parts(block.content)}
            for block in self.content
            if isinstance(block, ToolResultBlock)
        ]
        if self.role == "user":
            return [*results, {"role": "user", "content": texts}] if texts or not results else results
        calls = [
            {
                "id": block.id,
                "type": "function",
                "function": {"name": block.name, "arguments": json.dumps(block.input, ensure_ascii=False)},
            }
            for block in self.content
            if isinstance(block, ToolUseBlock)
        ]
        thoughts = [block.thinking for block in self.content if isinstance(block, ThinkingBlock)]
        content = texts or (None if calls else "")
        return [
            {"role": "assistant", "content": content, "tool_calls": calls, "reasoning_content": "\n".join(thoughts)}
        ]


class MessagesTool(WireModel):
    """A tool that the model may use."""

    name: ToolName
    description: Text | None = None
    input_schema: JsonSchema
    type: Annotated[None, NoEffect("custom")] = None
    cache_control: CacheControl = None
    strict: bool = False

    def as_chat(self) -> dict[str, Any]:
        """The tool of a chat request."""
        function = {
            "name": self.name,
            "description": self.description,
            "parameters": self.input_schema,
            "strict": self.strict,
        }
        return {"type": "function", "function": function}


def _unclashing(tools: list[MessagesTool]) -> list[MessagesTool]:
    unclashing([tool.name for tool in tools])
    return tools


class MessagesToolChoice(WireModel):
    """Whether the model may use tools, or must."""

    type: Literal["auto", "none", "any", "tool"]
    name: Annotated[ToolName | None, Field(description="With type 'tool': the one that is used.")] = Field(
        default=None, validate_default=True
    )
    disable_parallel_tool_use: bool = False

    @field_validator("name")
    @classmethod
    def _of_one_tool(cls, value: str | None, info: ValidationInfo) -> str | None:
        if (value is not None) != (info.data.get("type") == "tool"):
            raise ValueError("it belongs to type 'tool', and to no other")
        return value

    def as_chat(self) -> Any:
        """The choice of a chat request."""
        if self.type == "tool":
            return {"type": "function", "function": {"name": self.name}}
        return "required" if self.type == "any" else self.type


class JsonFormat(WireModel):
    """A JSON document that keeps to a schema."""

    type: Literal["json_schema"]
    schema_: JsonSchema = Field(alias="schema")

    def as_chat(self) -> dict[str, Any]:
        """The format of a chat request."""
        return {"type": "json_schema", "json_schema": {"name": "answer", "schema": self.schema_}}


class OutputConfig(WireModel):
    """The form of the answer, and how much is reasoned before it."""

    format: JsonFormat | None = None
    effort: ReasoningEffort | None = Field(default=None, description="As reasoning_effort of chats.")
    task_budget: Unsupported = None


class Thinking(WireModel):
    """Whether the model reasons before it answers."""

    type: Literal["enabled", "adaptive", "disabled"]
    budget_tokens: int | None = Field(
        default=None, ge=1, description="With type 'enabled': most tokens of it.", validate_default=True
    )
    display: Annotated[None, NoEffect("summarized")] = None

    @field_validator("budget_tokens")
    @classmethod
    def _of_what_is_enabled(cls, value: int | None, info: ValidationInfo) -> int | None:
        if (value is not None) != (info.data.get("type") == "enabled"):
            raise ValueError("it belongs to type 'enabled', and to no other")
        return value


class MessagesMetadata(WireModel):
    """Accepted, but not used."""

    user_id: str | None = None


class PromptFields(WireModel):
    """The fields that make up the prompt; shared by /v1/messages and /v1/messages/count_tokens."""

    model: str
    messages: Annotated[list[Turn], Field(min_length=1)]
    system: Texts = []
    tools: Annotated[list[MessagesTool], AfterValidator(_unclashing)] = []
    tool_choice: MessagesToolChoice = MessagesToolChoice(type="auto")
    thinking: Thinking | None = None
    cache_control: CacheControl = None
    context_management: Annotated[None, NoEffect({})] = None
    mcp_servers: Annotated[None, NoEffect([])] = None
    output_config: OutputConfig | None = None
    output_format: JsonFormat | None = Field(default=None, description="Older name of output_config.format.")

    @field_validator("messages")
    @classmethod
    def _ends_with_text(cls, value: list[Turn]) -> list[Turn]:
        last = value[-1]
        if last.role == "assistant" and not all(isinstance(block, TextBlock) for block in last.content):
            raise ValueError("the last one, the assistant's, is continued; so it holds text only, or comes earlier")
        return value

    def as_chat(self) -> dict[str, Any]:
        """The fields of a chat request with the same prompt."""
        system = [{"role": "system", "content": _parts(self.system)}] if self.system else []
        return {
            "model": self.model,
            "messages": [*system, *(message for turn in self.messages for message in turn.as_chat())],
            "tools": [tool.as_chat() for tool in self.tools],
            "tool_choice": self.tool_choice.as_chat(),
            "parallel_tool_calls": not self.tool_choice.disable_parallel_tool_use,
            "response_format": None if (asked := self.form) is None else asked.as_chat(),
            "continue_final_message": self.messages[-1].role == "assistant",
            "reasoning_effort": self.output_config.effort if self.output_config else None,
            **self._thinking(),
        }

    def _thinking(self) -> dict[str, Any]:
        """How it is reasoned, for a chat request."""
        if self.thinking is None:
            return {}
        variables = {"enable_thinking": self.thinking.type != "disabled"}
        return {"chat_template_kwargs": variables, "thinking_token_budget": self.thinking.budget_tokens}

    @property
    def form_field(self) -> str:
        """The field that holds the schema of the answer."""
        return "output_format.schema" if self.output_format else "output_config.format.schema"

    @property
    def form(self) -> JsonFormat | None:
        """The form of the answer; None: free text."""
        return self.output_format or (self.output_config.format if self.output_config else None)


class MessagesRequest(PromptFields):
    """A conversation to answer.

    Example: `{"model": "smollm2", "max_tokens": 64, "messages": [{"role": "user", "content": "Hello"}]}`
    """

    max_tokens: int = Field(ge=1, description="Most tokens of the answer; cut to what the context holds.")
    temperature: float = Field(default=1.0, ge=0, le=2)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=-1)
    stop_sequences: Annotated[list[StopString], Field(max_length=MAX_STOPS)] = []
    stream: bool = False
    store: bool = True
    osd: OsdOptions = OsdOptions()
    metadata: Annotated[MessagesMetadata | None, Field(description="Accepted and not used.")] = None
    service_tier: Annotated[None, NoEffect("auto", "standard_only")] = None
    container: Unsupported = None
    diagnostics: Unsupported = None
    inference_geo: Unsupported = None
    speed: Annotated[None, NoEffect("standard")] = None
    user_profile_id: Label = None
    workspace_id: Label = None

    def chat_request(self) -> ChatRequest:
        """The chat request that yields the same answer."""
        sampling = self.model_dump(include={"temperature", "top_p", "top_k", "store", "max_tokens"}, exclude_unset=True)
        return ChatRequest.converted(
            {**self.as_chat(), **sampling, "stop": self.stop_sequences, "osd": self.osd.model_dump()}
        )


class CountRequest(PromptFields):
    """A conversation whose tokens are to be counted."""

    def chat_request(self) -> ChatRequest:
        """The chat request with the same prompt."""
        return ChatRequest.converted(self.as_chat())


def _parts(blocks: list[TextBlock]) -> list[dict[str, str]]:
    return [{"type": "text", "text": block.text} for block in blocks]
