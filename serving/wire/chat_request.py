"""The body of POST /v1/chat/completions."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from osd.text.chat_template import ChatOptions
from serving.wire.errors import from_validation
from serving.wire.inert_fields import InertChat, InertMessage, NoEffect, WireModel
from serving.wire.request_base import GenerationFields, NumLogprobs
from serving.wire.text import Text
from serving.wire.tools import AllowedTools, Function, ToolCall, ToolChoice, Tools, shallow

ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class TextPart(WireModel):
    """One part of a message's content."""

    type: Literal["text"]
    text: Text
    cache_control: Annotated[None, NoEffect({"type": "ephemeral"})] = None
    prompt_cache_breakpoint: Annotated[None, NoEffect()] = None


def _part_list(value: Any) -> Any:
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


class Message(InertMessage):
    """One turn of a conversation. Only an assistant's may lack content, if it called tools."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    tool_calls: Annotated[list[ToolCall], Field(max_length=128)] = []
    tool_call_id: Annotated[
        Text | None, Field(min_length=1, max_length=256, description="The call that a tool's result is of.")
    ] = Field(default=None, validate_default=True)
    content: Annotated[
        list[TextPart] | None, BeforeValidator(_part_list, json_schema_input_type=str | list[TextPart] | None)
    ] = Field(default=None, validate_default=True)
    reasoning_content: Text = Field(default="", description="Of an earlier answer; templates may leave it out.")
    reasoning: Text = Field(default="", description="vLLM's name of reasoning_content.")

    parsed: Annotated[Any, Field(description="Accepted and not used: clients' helpers add it to answers.")] = None
    name: Annotated[Text | None, Field(description="Passed on with a tool's result; otherwise not used.")] = None

    @field_validator("tool_calls")
    @classmethod
    def _of_an_assistant(cls, value: list[ToolCall], info: ValidationInfo) -> list[ToolCall]:
        if value and info.data.get("role", "assistant") != "assistant":
            raise ValueError("only an assistant's message holds tool calls")
        return value

    @field_validator("tool_call_id")
    @classmethod
    def _of_a_tool(cls, value: str | None, info: ValidationInfo) -> str | None:
        is_tool = info.data.get("role") == "tool"
        if is_tool and value is None:
            raise PydanticCustomError("missing", "Field required")
        if value is not None and not is_tool:
            raise ValueError("only a tool's message holds it")
        return value

    @field_validator("content")
    @classmethod
    def _is_needed(cls, value: list[TextPart] | None, info: ValidationInfo) -> list[TextPart] | None:
        if value is None and not info.data.get("tool_calls"):
            raise PydanticCustomError("missing", "Field required")
        return value

    def for_template(self) -> dict[str, Any]:
        """The message for a chat template: role 'developer' becomes 'system', and a single part becomes a string."""
        texts = [part.text for part in self.content or ()]
        content = "".join(texts) if len(texts) < 2 else [{"type": "text", "text": text} for text in texts]
        message: dict[str, Any] = {"role": "system" if self.role == "developer" else self.role, "content": content}
        if self.tool_calls:
            message["tool_calls"] = [call.for_template() for call in self.tool_calls]
        if self.role == "tool":
            message["tool_call_id"] = self.tool_call_id
            message |= {"name": self.name} if self.name else {}
        if reasoning := self.reasoning_content or self.reasoning:
            message["reasoning_content"] = reasoning
        return message

    @property
    def text(self) -> str:
        """The message's whole text."""
        calls = [f"{call.function.name} {call.function.arguments}" for call in self.tool_calls]
        return "\n".join([*(part.text for part in self.content or ()), *calls])


_NO_VARIABLES = frozenset(
    ("add_generation_prompt", "chat_template", "continue_final_message", "conversation", "max_length", "messages")
    + ("padding", "return_assistant_tokens_mask", "return_dict", "return_tensors", "tokenize", "tokenizer_kwargs")
    + ("tools", "truncation")
)
"""Arguments of the renderer; those that a request may choose are fields of their own."""


def _are_variables(value: dict[str, Any]) -> dict[str, Any]:
    if named := sorted(_NO_VARIABLES & value.keys()):
        raise ValueError(f"{named[0]!r} is no variable that a request may set")
    return value


class TemplateFields(WireModel):
    """How a conversation is rendered by the model's chat template."""

    add_generation_prompt: bool | None = Field(
        default=None, description="End where the answer begins: true, unless continue_final_message is."
    )
    continue_final_message: bool = Field(
        default=False, description="The answer goes on with the last message, which is the assistant's."
    )
    chat_template: Annotated[Text | None, Field(min_length=1, max_length=1 << 16)] = Field(
        default=None, description="Jinja text; only where the server trusts requests with that."
    )
    chat_template_kwargs: Annotated[dict[str, Any], AfterValidator(shallow), AfterValidator(_are_variables)] = Field(
        default={}, description="Variables of the chat template; those that it does not use have no effect."
    )

    @field_validator("continue_final_message")
    @classmethod
    def _has_one_end(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("add_generation_prompt"):
            raise ValueError("it cannot be combined with add_generation_prompt: true")
        return value

    def chat_options(self) -> ChatOptions:
        """The same, for the codec."""
        prompts = self.add_generation_prompt
        return ChatOptions(
            variables=self.chat_template_kwargs,
            add_generation_prompt=not self.continue_final_message if prompts is None else prompts,
            continue_final_message=self.continue_final_message,
            template=self.chat_template,
        )


class ChatRequest(TemplateFields, InertChat, GenerationFields):
    """A conversation to answer. Without `max_tokens`, the answer may fill the rest of the context.

    Example: `{"model": "smollm2", "messages": [{"role": "user", "content": "Hello"}], "temperature": 0}`
    """

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: int | None = Field(default=None, ge=1, description="Newer name of max_tokens.")
    logprobs: bool = False
    top_logprobs: NumLogprobs = None
    tools: Tools = Field(default=[], description="Functions that the model may call.")
    tool_choice: ToolChoice = Field(
        default="auto",
        description="'none' does not tell the model of the tools; 'required' or one tool's name makes it call; "
        "'allowed_tools' lets it call some of them.",
        union_mode="left_to_right",
    )
    parallel_tool_calls: bool = Field(default=True, description="false leaves all calls but the first out.")
    include_reasoning: bool = Field(default=True, description="false leaves the reasoning out of the answer.")
    reasoning_effort: ReasoningEffort | None = Field(
        default=None, description="A variable of the chat template; sets enable_thinking, too."
    )
    return_prompt_text: bool = Field(
        default=False, description="The answer, or a stream's first chunk, holds the rendered prompt, prompt_text."
    )
    add_special_tokens: bool = Field(
        default=False, description="Of the prompt: those that the tokenizer puts around a text, besides the template's."
    )
    echo: bool = Field(
        default=False, description="Begin the content with that of the last message, if it is the assistant's."
    )
    documents: Annotated[list[dict[str, Text]], Field(max_length=1024)] = Field(
        default=[], description="For chat templates that write documents into the prompt."
    )

    @field_validator("max_completion_tokens")
    @classmethod
    def _one_limit(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("max_tokens") not in (None, value):
            raise ValueError("it differs from max_tokens; give one of them")
        return value

    @field_validator("tool_choice")
    @classmethod
    def _chooses_a_tool(cls, value: ToolChoice, info: ValidationInfo) -> ToolChoice:
        names = [tool.function.name for tool in info.data.get("tools", ())]
        chosen = [] if isinstance(value, str) else value.names
        if (unknown := next((name for name in chosen if name not in names), None)) is not None:
            raise ValueError(f"no tool is named {unknown!r}")
        if value == "required" and not names:
            raise ValueError("there are no tools")
        return value

    @field_validator("top_logprobs")
    @classmethod
    def _needs_logprobs(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value and not info.data.get("logprobs"):
            raise ValueError("it is allowed only with logprobs: true")
        return value

    def chat_options(self) -> ChatOptions:
        """See `TemplateFields`."""
        options, effort = super().chat_options(), self.reasoning_effort
        thinking = {} if effort is None else {"reasoning_effort": effort, "enable_thinking": effort != "none"}
        documents = {"documents": self.documents} if self.documents else {}
        variables = {**thinking, **documents, **options.variables}
        return replace(options, variables=variables, add_special_tokens=self.add_special_tokens)

    @property
    def echoed(self) -> str:
        """What the content of every choice begins with."""
        last = self.messages[-1]
        return "".join(part.text for part in last.content or ()) if self.echo and last.role == "assistant" else ""

    @classmethod
    def converted(cls, fields: dict[str, Any]) -> ChatRequest:
        """From the fields of another API's request.

        Raises:
            ApiError: 400, they do not fit each other, such as a choice of a tool that is not there.
        """
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            problems = [{**problem, "loc": ("body", *problem["loc"])} for problem in error.errors()]
            raise from_validation(problems, fields) from None

    @property
    def offered_tools(self) -> list[Function]:
        """Those that the model is told of."""
        return [] if self.tool_choice == "none" else [tool.function for tool in self.tools]

    @property
    def callable_tools(self) -> list[Function]:
        """Those that the model may call."""
        if isinstance(self.tool_choice, str):
            return self.offered_tools
        return [tool for tool in self.offered_tools if tool.name in self.tool_choice.names]

    @property
    def enforces_calls(self) -> bool:
        """Whether tools may be called and the answer has a form that says how."""
        chooses = not isinstance(self.tool_choice, str)
        asks = chooses or self.must_call or self.constraint_specs() or any(tool.strict for tool in self.callable_tools)
        return bool(self.callable_tools and asks)

    @property
    def must_call(self) -> bool:
        """Whether the answer is one or more calls."""
        if isinstance(self.tool_choice, AllowedTools):
            return self.tool_choice.allowed_tools.mode == "required"
        return self.tool_choice not in ("none", "auto")

    @property
    def answer_limit(self) -> int | None:
        """Most tokens of the answer; from either of the two fields for it."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def num_logprobs(self) -> int | None:
        """Number of alternatives per token; None for no log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None
