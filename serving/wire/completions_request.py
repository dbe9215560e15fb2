"""The body of POST /v1/completions."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from serving.wire.inert_fields import InertCompletion
from serving.wire.request_base import GenerationFields, NumLogprobs
from serving.wire.text import Text

DEFAULT_MAX_TOKENS = 16

_PROMPT_KINDS = "expected a string, a list of strings, a list of token ids or a list of lists of token ids"


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and all(type(token_id) is int for token_id in value)


def _prompt_list(value: Any) -> Any:
    """A list of prompts, each a string or token ids, whether the client sent one prompt or several."""
    if isinstance(value, str) or (value and _is_ids(value)):
        return [value]
    if value and isinstance(value, list) and (all(isinstance(one, str) for one in value) or all(map(_is_ids, value))):
        return value
    raise ValueError(_PROMPT_KINDS)


class CompletionRequest(InertCompletion, GenerationFields):
    """A text to continue. Without `max_tokens`, the answer has at most 16 tokens, as with OpenAI and vLLM.

    Example: `{"model": "smollm2", "prompt": "Once upon a time", "max_tokens": 32}`
    """

    prompt: Annotated[
        list[Text | list[int]],
        BeforeValidator(_prompt_list, json_schema_input_type=str | list[str] | list[int] | list[list[int]]),
        Field(description="Text or token ids, one prompt or a list."),
    ]
    max_tokens: int | None = Field(
        default=None, ge=0, description="Most tokens of the answer; 0, with echo, tells of the prompt only."
    )
    logprobs: NumLogprobs = None
    echo: bool = Field(
        default=False,
        description="Begin the text, and the log-probabilities, with the prompt's.",
    )
    add_special_tokens: bool = Field(
        default=True, description="Of a text: begin (or end) with those that the tokenizer puts around it."
    )
    best_of: int | None = Field(default=None, description="Accepted where it equals n: every choice is returned.")

    @property
    def num_prompt_logprobs(self) -> int | None:
        """Alternatives per token of the prompt: for the field of that name, or for those of an echo."""
        asked = (self.prompt_logprobs, self.logprobs if self.echo else None)
        return max((num for num in asked if num is not None), default=None)

    @property
    def answer_limit(self) -> int:
        """Most tokens of the answer."""
        return DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens

    @field_validator("best_of")
    @classmethod
    def _returns_every_choice(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and value != info.data.get("n"):
            raise ValueError("osd returns every choice: leave it out, or make it equal to n")
        return value
