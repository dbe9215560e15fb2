"""Request fields that osd does not implement, and the values of them that have no effect.

Many clients send such fields with their default values. A value without effect is accepted; any other is refused by
name, never silently ignored. The fields are those of OpenAI's API and of vLLM's `openai` protocol files.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

UNSUPPORTED = "unsupported"
"""The `type` of the validation error."""


class NoEffect:
    """Annotation of a field that accepts null and the listed JSON values, all of which validate to None."""

    def __init__(self, *values: Any) -> None:
        self.values = values

    @property
    def accepted(self) -> str:
        """The accepted values as JSON, for messages and documentation."""
        return " or ".join(json.dumps(value) for value in self.values)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Validate by comparing with the accepted values."""
        return core_schema.no_info_plain_validator_function(self._check)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """List the accepted values in the OpenAPI schema."""
        return {"enum": [None, *self.values], "description": "Not implemented: these values change nothing."}

    def _check(self, value: Any) -> None:
        if value is None or any(_is_same(value, accepted) for accepted in self.values):
            return
        or_send = f", or send {self.accepted}" if self.values else ""
        raise PydanticCustomError(UNSUPPORTED, "is not supported by osd: leave it out{or_send}", {"or_send": or_send})


def _is_same(value: Any, accepted: Any) -> bool:
    """Equality in JSON, where 1 equals 1.0 but not true."""
    return bool(value == accepted) and isinstance(value, bool) == isinstance(accepted, bool)


Unsupported = Annotated[None, NoEffect()]


class WireModel(BaseModel):
    """A JSON object in a request: unknown fields are refused, types are not coerced, null means absent."""

    # What a client sent is in no message of pydantic's, since logs may have these.
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {name: value for name, value in data.items() if value is not None or name not in cls.model_fields}


@cache
def known_fields() -> frozenset[str]:
    """The names of the fields of all requests, and of what they hold."""
    models: list[type[BaseModel]] = [WireModel]
    for model in models:  # the list grows
        models += model.__subclasses__()
    return frozenset(info.alias or name for model in models for name, info in model.model_fields.items())


class InertGeneration(WireModel):
    """Fields of chat and of plain completions."""

    # OpenAI
    moderation: Unsupported = None
    prompt_cache_options: Annotated[None, NoEffect({})] = None
    prompt_cache_retention: Annotated[None, NoEffect("in_memory", "in-memory")] = None
    service_tier: Annotated[None, NoEffect("auto", "default")] = None
    # vLLM: sampling
    logits_processors: Annotated[None, NoEffect([])] = None
    spaces_between_special_tokens: Annotated[None, NoEffect(True, False)] = None
    watermarking: Annotated[None, NoEffect(False)] = None
    # vLLM: prompts and what is returned
    return_mm_kwargs: Annotated[None, NoEffect(True)] = None
    return_token_offsets: Annotated[None, NoEffect(False)] = None
    routed_experts_prompt_start: Annotated[None, NoEffect(0)] = None
    # vLLM: scheduling
    ec_transfer_params: Annotated[None, NoEffect({})] = None
    kv_transfer_params: Annotated[None, NoEffect({})] = None
    vllm_xargs: Annotated[None, NoEffect({})] = None


class InertChat(WireModel):
    """Fields of chat completions only."""

    # OpenAI
    audio: Unsupported = None
    function_call: Annotated[None, NoEffect("none", "auto")] = None
    functions: Annotated[None, NoEffect([])] = None
    modalities: Annotated[None, NoEffect(["text"])] = None
    prediction: Unsupported = None
    verbosity: Annotated[None, NoEffect("medium")] = None
    web_search_options: Unsupported = None
    # vLLM
    media_io_kwargs: Annotated[None, NoEffect({})] = None
    mm_processor_kwargs: Annotated[None, NoEffect({})] = None


class InertCompletion(WireModel):
    """Fields of plain completions only."""

    prompt_embeds: Unsupported = None
    suffix: Annotated[None, NoEffect("")] = None


class InertMessage(WireModel):
    """Fields of one message; clients that send an answer back unchanged include these."""

    annotations: Annotated[None, NoEffect([])] = None
    audio: Unsupported = None
    function_call: Unsupported = None
    provider_specific_fields: Annotated[None, NoEffect({})] = None
    refusal: Unsupported = None
