"""What is sent, for the OpenAPI schema. Routes build plain dicts; a test holds every answer against these."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

Finished = Literal["stop", "length"]


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    """The field at fault, as `messages[0].content`; null when it is none."""
    code: str


class ErrorAnswer(BaseModel):
    """Every answer other than 2xx, and an event in mid-stream."""

    error: ErrorDetail


class PromptTokensDetails(BaseModel):
    """Of the prompt."""

    cached_tokens: int


class Usage(BaseModel):
    """Token counts; details are sent with the last."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails | None = None


class OsdStats(BaseModel):
    """How the answer was decoded; a ratio of nothing is null."""

    rounds: int
    proposed: int
    accepted: int
    committed: int
    acceptance_rate: float | None
    acceptance_length: float | None
    drafter_version: int
    drafter_versions: list[int]
    queue_ms: float
    prefill_ms: float
    draft_ms: float
    verify_ms: float


class TokenLogprob(BaseModel):
    """A token and its log-probability."""

    token: str
    logprob: float
    bytes: list[int]


class ChosenTokenLogprob(TokenLogprob):
    """The token that was taken, and the most likely ones."""

    top_logprobs: list[TokenLogprob]


class ChatLogprobs(BaseModel):
    """Of a choice, or of a piece of it."""

    content: list[ChosenTokenLogprob]
    refusal: None


class AnswerMessage(BaseModel):
    """The assistant's turn."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: Finished


class ChatCompletion(BaseModel):
    """The answer to POST /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    osd: OsdStats


class ChatDelta(BaseModel):
    """What a piece adds."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChunkChoice(BaseModel):
    """A piece of one answer."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: Finished | None


class ChatCompletionChunk(BaseModel):
    """One event of a stream, `data: {…}`; `data: [DONE]` ends it. An error in mid-stream is an ErrorAnswer."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None
    osd: OsdStats | None = None


class CompletionLogprobs(BaseModel):
    """Of a choice, or of a piece of it; offsets count characters from the beginning of the answer."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One answer."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Finished


class Completion(BaseModel):
    """The answer to POST /v1/completions."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage
    osd: OsdStats


class CompletionChunkChoice(BaseModel):
    """A piece of one answer."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Finished | None


class CompletionChunk(BaseModel):
    """One event of a stream, `data: {…}`; `data: [DONE]` ends it. An error in mid-stream is an ErrorAnswer."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChunkChoice]
    usage: Usage | None = None
    osd: OsdStats | None = None


class ModelCard(BaseModel):
    """The served model; `max_model_len` is its context in tokens, by vLLM's name."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: Literal["osd"]
    max_model_len: int


class ModelList(BaseModel):
    """A list of one."""

    object: Literal["list"]
    data: list[ModelCard]


class Health(BaseModel):
    """`/health`: this process answers."""

    status: Literal["ok"]


class Readiness(BaseModel):
    """`/ready`: queries are answered, or not yet."""

    status: Literal["ready", "starting"]
