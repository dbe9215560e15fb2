"""Models of /v1/responses' answers, for the OpenAPI schema."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from serving.responses.request import ResponsesToolChoice
from serving.wire.answers import ChosenTokenLogprob, OsdStats

Status = Literal["in_progress", "completed", "incomplete"]


class OutputText(BaseModel):
    """The text of a message."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[ChosenTokenLogprob]


class OutputMessage(BaseModel):
    """Text for the user."""

    type: Literal["message"]
    id: str
    role: Literal["assistant"]
    status: Status
    content: list[OutputText]


class OutputCall(BaseModel):
    """A tool call."""

    type: Literal["function_call"]
    id: str
    call_id: str
    name: str
    arguments: str
    status: Status


class OutputReasoningText(BaseModel):
    """The text of reasoning."""

    type: Literal["reasoning_text"]
    text: str


class OutputReasoning(BaseModel):
    """The model's reasoning."""

    type: Literal["reasoning"]
    id: str
    status: Status
    summary: list[Any]
    content: list[OutputReasoningText]


OutputItem = Annotated[OutputMessage | OutputCall | OutputReasoning, Field(discriminator="type")]


class InputTokensDetails(BaseModel):
    """Details of the input tokens."""

    cached_tokens: int
    cache_write_tokens: int


class OutputTokensDetails(BaseModel):
    """Details of the output tokens."""

    reasoning_tokens: int


class ResponseUsage(BaseModel):
    """Token counts."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class IncompleteDetails(BaseModel):
    """Why the response is incomplete."""

    reason: Literal["max_output_tokens"]


class ResponseFailure(BaseModel):
    """Why a response in the background failed."""

    code: Literal["server_error", "rate_limit_exceeded"]
    message: str


class ResponseObject(BaseModel):
    """The answer to POST /v1/responses; fields of the request are repeated."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Status | Literal["queued", "failed", "cancelled"]
    background: bool
    error: ResponseFailure | None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    model: str
    output: list[OutputItem]
    parallel_tool_calls: bool
    previous_response_id: str | None
    reasoning: dict[str, str | None]
    service_tier: Literal["default"]
    store: bool
    temperature: float
    text: dict[str, Any]
    tool_choice: ResponsesToolChoice
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    truncation: Literal["auto", "disabled"]
    usage: ResponseUsage | None
    user: str | None
    osd: OsdStats | None = None


class ResponseEvent(BaseModel):
    """One event of a stream, with the fields of its type, as in OpenAI's API. An `error` event is an ErrorAnswer."""

    type: str
    sequence_number: int
    response: ResponseObject | None = None
    output_index: int | None = None
    item_id: str | None = None
    content_index: int | None = None
    item: OutputItem | None = None
    part: OutputText | None = None
    delta: str | None = None
    text: str | None = None
    name: str | None = None
    arguments: str | None = None
    logprobs: list[ChosenTokenLogprob] | None = None
    code: str | None = None
    message: str | None = None
    param: str | None = None
    error: Any = None


class InputText(BaseModel):
    """A part of an input message's text."""

    type: Literal["input_text"]
    text: str


class InputMessage(BaseModel):
    """A message of the input."""

    type: Literal["message"]
    id: str
    role: Literal["system", "developer", "user"]
    status: Status
    content: list[InputText]


class InputCallOutput(BaseModel):
    """The result of a tool call."""

    type: Literal["function_call_output"]
    id: str
    call_id: str
    status: Status
    output: list[InputText]


InputItem = InputMessage | InputCallOutput | OutputItem


class InputItemList(BaseModel):
    """The answer to GET /v1/responses/{response_id}/input_items."""

    object: Literal["list"]
    data: list[InputItem]
    first_id: str
    last_id: str
    has_more: bool


class InputTokens(BaseModel):
    """The answer to POST /v1/responses/input_tokens."""

    object: Literal["response.input_tokens"]
    input_tokens: int


class DeletedResponse(BaseModel):
    """The answer to DELETE /v1/responses/{response_id}."""

    id: str
    object: Literal["response"]
    deleted: Literal[True]
