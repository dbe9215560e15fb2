"""The body of POST /v1/responses, and its conversion to a chat request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator

from serving.forms.fields import JsonObject, NamedSchema, PlainText, StructuredOutputs
from serving.responses.items import Item, conversation
from serving.wire.chat_request import ChatRequest, ReasoningEffort
from serving.wire.inert_fields import NoEffect, Unsupported, WireModel
from serving.wire.request_base import CacheSalt, Label, LogitBias, NumLogprobs, OsdOptions, Stop
from serving.wire.text import Text
from serving.wire.tools import MAX_TOOLS, JsonSchema, ToolName, unclashing


def _input_items(value: Any) -> Any:
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


class FunctionTool(WireModel):
    """A function that the model may call; the only supported kind of tool."""

    type: Literal["function"]
    name: ToolName
    description: Text | None = None
    parameters: JsonSchema | None = None
    strict: bool = False
    async_: Annotated[None, NoEffect(False)] = Field(default=None, alias="async")
    allowed_callers: Annotated[None, NoEffect(["direct"])] = None
    defer_loading: Annotated[None, NoEffect(False)] = None
    output_schema: Unsupported = None

    def as_chat(self) -> dict[str, Any]:
        """The tool of a chat request."""
        function = {
            "name": self.name,
            "description": self.description,
            "parameters": self.parameters,
            "strict": self.strict,
        }
        return {"type": "function", "function": function}

    def as_sent(self) -> dict[str, Any]:
        """The tool as repeated in the answer."""
        return {
            "type": "function",
            "name": self.name,
            "description": self.description,
            "parameters": self.parameters or {},
            "strict": self.strict,
        }


def _unclashing(tools: list[FunctionTool]) -> list[FunctionTool]:
    unclashing([tool.name for tool in tools])
    return tools


class SchemaFormat(NamedSchema):
    """A JSON document that keeps to a schema."""

    type: Literal["json_schema"]

    def as_chat(self) -> dict[str, Any]:
        """The format of a chat request."""
        return {"type": "json_schema", "json_schema": self.model_dump(by_alias=True, exclude={"type"})}


class TextOptions(WireModel):
    """The form of the answer's text."""

    format: Annotated[PlainText | JsonObject | SchemaFormat | None, Field(discriminator="type")] = None
    verbosity: Annotated[None, NoEffect("medium")] = None

    def as_chat(self) -> dict[str, Any] | None:
        """The format of a chat request."""
        match self.format:
            case SchemaFormat() as asked:
                return asked.as_chat()
            case JsonObject():
                return {"type": "json_object"}
        return None

    def as_sent(self) -> dict[str, Any]:
        """The form as repeated in the answer."""
        return {"format": {"type": "text"} if self.format is None else self.format.model_dump(by_alias=True)}


class ChosenByName(WireModel):
    """A choice of one tool."""

    type: Literal["function"]
    name: ToolName


class AllowedByName(WireModel):
    """A choice of some tools; the model is told of all of them."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[ChosenByName], Field(min_length=1, max_length=MAX_TOOLS)]


ResponsesToolChoice = Literal["none", "auto", "required"] | ChosenByName | AllowedByName


class ReasoningOptions(WireModel):
    """Reasoning options."""

    effort: ReasoningEffort | None = None
    context: Annotated[None, NoEffect("auto")] = None
    generate_summary: Unsupported = None
    mode: Annotated[None, NoEffect("standard")] = None
    summary: Annotated[None, NoEffect("auto")] = None


class ResponsesStreamOptions(WireModel):
    """How a stream is sent."""

    include_obfuscation: Annotated[None, NoEffect(False)] = None


_LOGPROBS = "message.output_text.logprobs"
Include = Literal[
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "web_search_call.action.sources",
    "web_search_call.results",
]
"""Only log-probabilities are added: reasoning items hold their text anyway, the others are of OpenAI's own tools."""
ResponseId = Annotated[
    str | None,
    Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:=@+-]{0,127}$", description="The response's id; no stored one has it."),
]


Input = Annotated[
    list[Item],
    Field(min_length=1),
    BeforeValidator(_input_items, json_schema_input_type=str | list[Item]),
]


class PromptFields(WireModel):
    """The fields that make up a prompt."""

    model: str | None = None
    input: Input | None = None
    instructions: Text | None = Field(default=None, description="The system message; not carried over.")
    previous_response_id: Annotated[str | None, Field(max_length=256)] = None
    tools: Annotated[list[FunctionTool], AfterValidator(_unclashing)] = []
    tool_choice: ResponsesToolChoice = Field(default="auto", union_mode="left_to_right")
    parallel_tool_calls: bool = True
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    conversation: Unsupported = None
    truncation: Literal["auto", "disabled"] = Field(
        default="disabled", description="auto leaves out the oldest turns of a conversation that is too long."
    )

    def prompt_of_chat(self, items: Sequence[Item]) -> dict[str, Any]:
        """The fields of a chat request with the same prompt.

        Args:
            items: the conversation: those of earlier responses, and the input.
        """
        system = [{"role": "system", "content": self.instructions}] if self.instructions else []
        return {
            "model": self.model,
            "messages": [*system, *conversation(items)],
            "tools": [tool.as_chat() for tool in self.tools],
            "tool_choice": _choice_in_chat(self.tool_choice),
            "parallel_tool_calls": self.parallel_tool_calls,
            "response_format": None if self.text is None else self.text.as_chat(),
            "reasoning_effort": None if self.reasoning is None else self.reasoning.effort,
        }


class InputTokensRequest(PromptFields):
    """A prompt whose tokens are counted.

    Example: `{"model": "smollm2", "input": "Hello"}`
    """

    personality: Unsupported = None


class ResponsesRequest(PromptFields):
    """Input to answer, optionally after an earlier response.

    `store` defaults to true: the response can be retrieved and continued, and osd learns from it. With false, the query
    only counts in the counters.

    Example: `{"model": "smollm2", "input": "Hello", "max_output_tokens": 64}`
    """

    input: Input
    max_output_tokens: int | None = Field(default=None, ge=1)
    temperature: float = Field(default=1.0, ge=0, le=2)
    top_p: float = Field(default=1.0, gt=0, le=1)
    stream: bool = False
    stream_options: ResponsesStreamOptions | None = None
    store: bool = True
    metadata: Annotated[dict[str, str], Field(max_length=16, description="Sent back.")] = {}
    # osd's and vLLM's
    top_k: int = Field(default=0, ge=-1)
    min_p: float = Field(default=0.0, ge=0, le=1)
    presence_penalty: float = Field(default=0.0, ge=-2, le=2)
    frequency_penalty: float = Field(default=0.0, ge=-2, le=2)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**62)
    stop: Stop = []
    ignore_eos: bool = False
    repetition_penalty: float = Field(default=1.0, gt=0, le=10)
    logit_bias: LogitBias = {}
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    structured_outputs: StructuredOutputs | None = None
    priority: int = Field(default=0, ge=-(2**31), lt=2**31)
    cache_salt: CacheSalt = None
    request_id: ResponseId = None
    osd: OsdOptions = OsdOptions()

    prompt_cache_key: Label = None
    safety_identifier: Label = None
    user: Label = None
    access_programs: Unsupported = None
    background: bool = Field(
        default=False, description="Answer at once with the response's id, by which the response is asked for later."
    )
    background_options: Unsupported = None
    context_management: Annotated[None, NoEffect([])] = None
    enable_response_messages: Annotated[None, NoEffect(False)] = None
    image: Unsupported = None
    include: Annotated[
        list[Include],
        Field(description="'message.output_text.logprobs' is honoured; the others tell of what is never there."),
    ] = []
    max_tool_calls: Annotated[
        int | None, Field(ge=1, description="Accepted and not used: of tools that a server runs itself.")
    ] = None
    mm_processor_kwargs: Annotated[None, NoEffect({})] = None
    moderation: Unsupported = None
    previous_input_messages: Annotated[None, NoEffect([])] = None
    previous_response: Unsupported = None
    prompt: Unsupported = None
    prompt_cache_options: Annotated[None, NoEffect({})] = None
    prompt_cache_retention: Annotated[None, NoEffect("in_memory", "in-memory")] = None
    service_tier: Annotated[None, NoEffect("auto", "default")] = None
    top_logprobs: NumLogprobs = None
    vllm_xargs: Annotated[None, NoEffect({})] = None

    @field_validator("background")
    @classmethod
    def _is_stored(cls, value: bool, info: ValidationInfo) -> bool:
        if value and not info.data.get("store", True):
            raise ValueError("it needs store: true, since the response is asked for later")
        return value

    @field_validator("top_logprobs")
    @classmethod
    def _are_included(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value and _LOGPROBS not in info.data.get("include", ()):
            raise ValueError(f"it is allowed only with include: [{_LOGPROBS!r}]")
        return value

    @property
    def wants_logprobs(self) -> bool:
        """Whether the answer tells of its tokens' log-probabilities."""
        return _LOGPROBS in self.include

    def chat_request(self, items: Sequence[Item]) -> ChatRequest:
        """The chat request that yields the same answer.

        Args:
            items: the conversation: those of earlier responses, and the input.
        """
        sampling = self.model_dump(
            include={
                "temperature",
                "top_p",
                "top_k",
                "min_p",
                "presence_penalty",
                "frequency_penalty",
                "seed",
                "stop",
                "ignore_eos",
                "repetition_penalty",
                "logit_bias",
                "include_stop_str_in_output",
                "skip_special_tokens",
                "structured_outputs",
                "priority",
                "cache_salt",
                "store",
                "osd",
            },
            exclude_unset=True,
            by_alias=True,
        )
        return ChatRequest.converted(
            {
                **self.prompt_of_chat(items),
                **sampling,
                "max_completion_tokens": self.max_output_tokens,
                "logprobs": self.wants_logprobs,
                "top_logprobs": self.top_logprobs,
            }
        )


def _choice_in_chat(choice: ResponsesToolChoice) -> Any:
    match choice:
        case ChosenByName():
            return {"type": "function", "function": {"name": choice.name}}
        case AllowedByName():
            tools = [_choice_in_chat(tool) for tool in choice.tools]
            return {"type": "allowed_tools", "allowed_tools": {"mode": choice.mode, "tools": tools}}
    return choice
