"""What all request bodies share: strictness, and the fields that shape sampling.

A field that osd does not implement is refused by name, never ignored; the OpenAI fields among them are listed as
`Unsupported`, so that `null`, which OpenAI takes as absent, is taken as absent here too.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from osd.types import SamplingParams

MAX_CHOICES = 128
Unsupported = Annotated[None, Field(description="Not supported: only null is accepted.")]


def _utf8(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can spell half a surrogate pair, which no tokenizer reads
        raise ValueError("the text holds an unpaired surrogate") from error
    return text


Text = Annotated[str, AfterValidator(_utf8)]


class WireModel(BaseModel):
    """A JSON object of a request: unknown fields are refused, types are not coerced, null is absent."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {name: value for name, value in data.items() if value is not None or name not in cls.model_fields}


class StreamOptions(WireModel):
    """How a stream is sent."""

    include_usage: bool = Field(default=False, description="Send a last chunk with token counts.")


class OsdOptions(WireModel):
    """The `osd` object of a request: what OpenAI's API has no field for."""

    domain: str = Field(
        default="default",
        pattern=r"^[A-Za-z0-9._:-]{1,64}$",
        description="Label of this traffic, kept with its outcomes; training batches are balanced over the labels.",
    )
    speculation_length: int | None = Field(
        default=None, ge=0, le=16, description="Tokens proposed per round; null chooses by goodput, 0 decodes plainly."
    )


def _stop_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Stop = Annotated[
    list[Annotated[str, Field(min_length=1), AfterValidator(_utf8)]],
    BeforeValidator(_stop_list, json_schema_input_type=str | list[str]),
    Field(max_length=4, description="One string or up to four; the answer ends before the first that appears."),
]


class GenerationFields(WireModel):
    """The fields that chat and plain completions have in common.

    `store` defaults to true, unlike OpenAI's: osd learns from its traffic. With `"store": false` nothing of the query
    is recorded but counters. `metadata` and `user` are accepted and change nothing.
    """

    model: str
    max_tokens: int | None = Field(
        default=None, ge=1, description="Most tokens of the answer; cut to what the context holds."
    )
    temperature: float = Field(default=1.0, ge=0, le=2)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0, description="0 keeps the whole vocabulary.")
    min_p: float = Field(default=0.0, ge=0, le=1)
    presence_penalty: float = Field(default=0.0, ge=-2, le=2)
    frequency_penalty: float = Field(default=0.0, ge=-2, le=2)
    seed: int | None = Field(
        default=None, ge=-(2**63), lt=2**63 - MAX_CHOICES, description="Choice i draws with seed + i."
    )
    stop: Stop = []
    n: int = Field(default=1, ge=1, le=MAX_CHOICES)
    stream: bool = False
    stream_options: StreamOptions | None = None
    ignore_eos: bool = Field(default=False, description="For benchmarks: go on after the end-of-text token.")
    store: bool = True
    metadata: dict[str, str] | None = None
    user: str | None = None
    osd: OsdOptions = OsdOptions()

    logit_bias: Unsupported = None
    service_tier: Unsupported = None
    prompt_cache_key: Unsupported = None
    safety_identifier: Unsupported = None

    @field_validator("stream_options")
    @classmethod
    def _only_of_a_stream(cls, value: StreamOptions | None, info: ValidationInfo) -> StreamOptions | None:
        if value is not None and not info.data.get("stream"):
            raise ValueError("it is allowed only with stream: true")
        return value

    def sampling(self, *, max_tokens: int, logprobs: int | None, choice: int) -> SamplingParams:
        """The engine's parameters of one choice."""
        return SamplingParams(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            seed=None if self.seed is None else self.seed + choice,
            max_tokens=max_tokens,
            stop=tuple(self.stop),
            logprobs=logprobs,
            ignore_eos=self.ignore_eos,
        )
