"""The body of POST /v1/chat/completions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from serving.wire.inert_fields import InertChat, InertMessage, NoEffect, WireModel
from serving.wire.request_base import GenerationFields, Text


class TextPart(WireModel):
    """One part of a message's content."""

    type: Literal["text"]
    text: Text
    cache_control: Annotated[None, NoEffect({"type": "ephemeral"})] = None
    prompt_cache_breakpoint: Annotated[None, NoEffect()] = None


def _part_list(value: Any) -> Any:
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


class Message(InertMessage):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[TextPart], BeforeValidator(_part_list, json_schema_input_type=str | list[TextPart])]

    name: Annotated[str | None, Field(description="Accepted and not used.")] = None

    def for_template(self) -> dict[str, Any]:
        """The message for a chat template: role 'developer' becomes 'system', and a single part becomes a string."""
        role = "system" if self.role == "developer" else self.role
        texts = [part.text for part in self.content]
        content = texts[0] if len(texts) == 1 else [{"type": "text", "text": text} for text in texts]
        return {"role": role, "content": content}

    @property
    def text(self) -> str:
        """The message's whole text."""
        return "\n".join(part.text for part in self.content)


class ChatRequest(InertChat, GenerationFields):
    """A conversation to answer. Without `max_tokens`, the answer may fill the rest of the context.

    Example: `{"model": "smollm2", "messages": [{"role": "user", "content": "Hello"}], "temperature": 0}`
    """

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: int | None = Field(default=None, ge=1, description="Newer name of max_tokens.")
    logprobs: bool = False
    top_logprobs: int | None = Field(default=None, ge=0, le=20)

    @field_validator("max_completion_tokens")
    @classmethod
    def _one_limit(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("max_tokens") not in (None, value):
            raise ValueError("it differs from max_tokens; give one of them")
        return value

    @field_validator("top_logprobs")
    @classmethod
    def _needs_logprobs(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value and not info.data.get("logprobs"):
            raise ValueError("it is allowed only with logprobs: true")
        return value

    @property
    def answer_limit(self) -> int | None:
        """Most tokens of the answer; from either of the two fields for it."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def num_logprobs(self) -> int | None:
        """Number of alternatives per token; None for no log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None
