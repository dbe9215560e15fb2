"""The base of both request bodies: strict parsing, and the fields that they share."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator

from osd.records.query import DOMAIN_PATTERN, MAX_STOPS
from serving.forms.fields import FormFields
from serving.forms.repetition import RepetitionDetection
from serving.wire.inert_fields import InertGeneration, NoEffect, WireModel
from serving.wire.text import Text

MAX_CHOICES = 128
MAX_NAMED_TOKENS = 128
"""Most entries of `logprob_token_ids`, the same as vLLM's limit."""
MAX_LOGPROBS = 20
"""Most log-probabilities a token, the same as vLLM's default of --max-logprobs."""


class StreamOptions(WireModel):
    """How a stream is sent."""

    include_usage: bool = Field(default=False, description="Send a last chunk with token counts.")
    continuous_usage_stats: bool = Field(
        default=False, description="With include_usage: every chunk carries the token counts so far."
    )
    include_obfuscation: Annotated[None, NoEffect(False)] = None

    @property
    def asks_for_something(self) -> bool:
        """False if all options have their default values."""
        return self.include_usage or self.continuous_usage_stats


class OsdOptions(WireModel):
    """The `osd` object of a request: options that OpenAI's API has no field for."""

    domain: str | None = Field(
        default=None,
        pattern=DOMAIN_PATTERN,
        description="Label of this traffic, kept with its outcomes; training batches are balanced over the labels. "
        "null: what follows the model's name ('smollm2:sql'), else the API key's domain, else what the prompt "
        "tells if domains have drafters of their own (drafter.route), else 'default'.",
    )
    speculation_length: int | None = Field(
        default=None, ge=0, le=16, description="Tokens proposed per round; null chooses by goodput, 0 decodes plainly."
    )


def _stop_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


StopString = Annotated[Text, Field(min_length=1, max_length=1024)]
Stop = Annotated[
    list[StopString],
    BeforeValidator(_stop_list, json_schema_input_type=str | list[str]),
    Field(max_length=MAX_STOPS, description="One string or several; the answer ends before the first that appears."),
]


TokenIds = Annotated[list[int], Field(max_length=1024)]


def _some_logprobs(value: Any) -> Any:
    if type(value) is int and not 0 <= value <= MAX_LOGPROBS:
        asked = "the whole vocabulary" if value == -1 else f"{value} tokens"
        raise ValueError(f"it asks for {asked} at each position; 0 to {MAX_LOGPROBS} are told")
    return value


NumLogprobs = Annotated[
    int | None,
    BeforeValidator(_some_logprobs, json_schema_input_type=Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None),
]


def _by_id(value: dict[str, float]) -> dict[str, float]:
    if not all(key.isascii() and key.isdigit() for key in value):
        raise ValueError('the keys are token ids, as in {"50256": -100}')
    if not all(-100 <= bias <= 100 for bias in value.values()):
        raise ValueError("a bias is between -100 and 100")
    return value


LogitBias = Annotated[
    dict[str, float],
    Field(max_length=1024, description="Token id to what is added to its logit."),
    AfterValidator(_by_id),
]
CacheSalt = Annotated[
    Text | None,
    Field(min_length=1, max_length=256, description="Prompts are reused from queries of the same salt only."),
]
OwnId = Annotated[
    str | None, Field(pattern=r"^[A-Za-z0-9._:=@/+-]{1,128}$", description="The id of the answer, after its prefix.")
]
Label = Annotated[str | None, Field(description="Accepted and not used.")]


class GenerationFields(InertGeneration, FormFields):
    """The fields that chat and plain completions share.

    `store` defaults to true, unlike OpenAI's: osd learns from its traffic. With `"store": false` nothing of the query
    is recorded but counters.
    """

    model: str | None = Field(default=None, description="The served model, which is also the default.")
    max_tokens: int | None = Field(
        default=None, ge=1, description="Most tokens of the answer; cut to what the context holds."
    )
    temperature: float = Field(default=1.0, ge=0, le=2)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=-1, description="0 and -1 keep the whole vocabulary.")
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
    min_tokens: int = Field(
        default=0, ge=0, description="Before so many tokens, neither an end token nor a stop string ends the answer."
    )
    repetition_penalty: float = Field(default=1.0, gt=0, le=10, description="Of tokens of prompt and answer.")
    logit_bias: LogitBias = {}
    allowed_token_ids: TokenIds = Field(default=[], description="The answer consists of these only.")
    bad_words: Annotated[list[Annotated[Text, Field(min_length=1)]], Field(max_length=128)] = []
    stop_token_ids: TokenIds = Field(default=[], description="End the answer, as the model's own end tokens do.")
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = Field(default=True, description="false leaves them in the text, as they are spelt.")
    prompt_logprobs: NumLogprobs = None
    logprob_token_ids: Annotated[list[int], Field(max_length=MAX_NAMED_TOKENS)] = Field(
        default=[], description="With logprobs: told of instead of the most likely tokens."
    )
    repetition_detection: RepetitionDetection | None = None
    thinking_token_budget: int = Field(
        default=-1, ge=-1, description="Most tokens of reasoning, after which its end is written; -1: no limit."
    )
    return_token_ids: bool = False
    return_tokens_as_token_ids: bool = Field(default=False, description="Write tokens of logprobs as 'token_id:7'.")
    truncate_prompt_tokens: int | None = Field(
        default=None, ge=-1, description="Most tokens of the prompt; -1: those that leave room for an answer."
    )
    truncation_side: Literal["left", "right"] = Field(default="left", description="Where the prompt is cut.")
    priority: int = Field(default=0, ge=-(2**31), lt=2**31, description="Lower numbers are served first.")
    stream_interval: int = Field(default=1, ge=1, description="A stream's events hold at least so many tokens.")
    use_beam_search: bool = Field(
        default=False, description="Answer with the n most likely texts that a search over n beams finds."
    )
    length_penalty: float = Field(
        default=1.0, ge=-10, le=10, description="Of use_beam_search: above 0 favours longer answers."
    )
    cache_salt: CacheSalt = None
    request_id: OwnId = None
    store: bool = True
    osd: OsdOptions = OsdOptions()

    metadata: Annotated[dict[str, str] | None, Field(description="Accepted and not used.")] = None
    prompt_cache_key: Label = None
    safety_identifier: Label = None
    session_id: Label = None
    user: Label = None

    @field_validator("stream_options")
    @classmethod
    def _only_of_a_stream(cls, value: StreamOptions | None, info: ValidationInfo) -> StreamOptions | None:
        if value is not None and value.asks_for_something and not info.data.get("stream"):
            raise ValueError("it is allowed only with stream: true")
        return value

    @field_validator("prompt_logprobs")
    @classmethod
    def _is_not_streamed(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("stream"):
            raise ValueError("it is not sent in streams; leave one of them out")
        return value

    @field_validator("length_penalty")
    @classmethod
    def _is_of_a_search(cls, value: float, info: ValidationInfo) -> float:
        if value != 1.0 and not info.data.get("use_beam_search"):
            raise ValueError("it is allowed only with use_beam_search: true")
        return value

    @field_validator("truncate_prompt_tokens")
    @classmethod
    def _leaves_something(cls, value: int | None) -> int | None:
        if value == 0:
            raise ValueError("a prompt has at least one token; -1 cuts it to what the context holds")
        return value

    @field_validator("ignore_eos")
    @classmethod
    def _has_an_end(cls, value: bool, info: ValidationInfo) -> bool:
        if value and any(info.data.get(name) is not None for name in FormFields.model_fields):
            raise ValueError("an answer with a form ends where it is complete; leave one of them out")
        return value
