"""Models of all answers, for the OpenAPI schema. Routes build plain dicts, which a test checks against these models."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

Finished = Literal["stop", "length"]
ChatFinished = Literal["stop", "length", "tool_calls"]


class ErrorDetail(BaseModel):
    """An error."""

    message: str
    type: str
    param: str | None
    """The offending field, such as `messages[0].content`; null if there is none."""
    code: str


class ErrorAnswer(BaseModel):
    """The body of every answer other than 2xx, and of an error event in a stream."""

    error: ErrorDetail


class PromptTokensDetails(BaseModel):
    """Details of the prompt's tokens."""

    cached_tokens: int


class Usage(BaseModel):
    """Token counts; `details` are only in the last chunk of a stream."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails | None = None


class OsdStats(BaseModel):
    """How the answer was decoded; ratios with denominator 0 are null."""

    rounds: int
    proposed: int
    accepted: int
    committed: int
    acceptance_rate: float | None
    acceptance_length: float | None
    drafter_version: int
    drafter_versions: list[int]
    drafters: list[str]
    domain: str | None
    queue_ms: float
    prefill_ms: float
    draft_ms: float
    verify_ms: float


class SpeculationFigures(BaseModel):
    """Speculation in this answer by vLLM's names; steps are the rounds in which tokens were proposed."""

    num_spec_tokens: int
    num_spec_steps: int
    num_draft_tokens: int
    num_accepted_draft_tokens: int
    mean_acceptance_length: float
    draft_acceptance_rate: float
    acceptance_histogram: list[int]


class Metrics(BaseModel):
    """Left out where there are several choices, or nothing was proposed."""

    speculative_decoding: SpeculationFigures


class TokenLogprob(BaseModel):
    """A token and its log-probability."""

    token: str
    logprob: float
    bytes: list[int]


class ChosenTokenLogprob(TokenLogprob):
    """The chosen token, and the most likely ones at its position."""

    top_logprobs: list[TokenLogprob]


class ChatLogprobs(BaseModel):
    """Log-probabilities of a choice, or of a chunk of it."""

    content: list[ChosenTokenLogprob]
    refusal: None


class FunctionCalled(BaseModel):
    """The function of a call; the arguments are JSON, unless `max_tokens` cut them off."""

    name: str
    arguments: str


class ToolCallAnswer(BaseModel):
    """A tool call that the model makes."""

    id: str
    type: Literal["function"]
    function: FunctionCalled


class AnswerMessage(BaseModel):
    """The assistant's message; its content is null if it consists of tool calls only."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallAnswer] | None = None


class PromptToken(BaseModel):
    """A token of the prompt, or one that could have been there; `rank` is null where it is not among the asked."""

    logprob: float
    rank: int | None
    decoded_token: str


PromptLogprobs = list[dict[str, PromptToken] | None]
"""By token id, for every token of the prompt; null for the first."""


class ChatChoice(BaseModel):
    """One choice."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinished
    stop_reason: str | int | None = None
    token_ids: list[int] | None = None


class ChatCompletion(BaseModel):
    """The answer to POST /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    osd: OsdStats
    metrics: Metrics | None = None
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: PromptLogprobs | None = None
    prompt_text: str | None = None


class FunctionDelta(BaseModel):
    """The function's name, or a further part of its arguments."""

    name: str | None = None
    arguments: str


class ToolCallDelta(BaseModel):
    """What a chunk adds to the call with this index; `id` and `type` are sent with the name."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionDelta


class ChatDelta(BaseModel):
    """What a chunk adds."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChatChunkChoice(BaseModel):
    """A chunk of one choice."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinished | None
    stop_reason: str | int | None = None
    token_ids: list[int] | None = None


class ChatCompletionChunk(BaseModel):
    """One event of a stream, `data: {…}`; `data: [DONE]` ends it. An error during the stream is an ErrorAnswer."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None
    osd: OsdStats | None = None
    metrics: Metrics | None = None
    prompt_token_ids: list[int] | None = None
    prompt_text: str | None = None


class CompletionLogprobs(BaseModel):
    """Log-probabilities of a choice, or of a chunk of it; offsets count characters from the beginning of its text. The
    first token of an echoed prompt has none.
    """

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One choice."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Finished
    stop_reason: str | int | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: PromptLogprobs | None = None


class Completion(BaseModel):
    """The answer to POST /v1/completions."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage
    osd: OsdStats
    metrics: Metrics | None = None


class CompletionChunkChoice(BaseModel):
    """A chunk of one choice."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Finished | None
    stop_reason: str | int | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None


class CompletionChunk(BaseModel):
    """One event of a stream, `data: {…}`; `data: [DONE]` ends it. An error during the stream is an ErrorAnswer."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChunkChoice]
    usage: Usage | None = None
    osd: OsdStats | None = None
    metrics: Metrics | None = None


class ModelCard(BaseModel):
    """The served model; `max_model_len` (vLLM's name) is its context size in tokens."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: Literal["osd"]
    root: str
    parent: None
    max_model_len: int


class ModelList(BaseModel):
    """The list of models, which has one entry."""

    object: Literal["list"]
    data: list[ModelCard]


class Tokens(BaseModel):
    """`/tokenize`: what a text or conversation is to the model."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None
    """With `return_token_strs`."""


class Detokenized(BaseModel):
    """`/detokenize`: the text of tokens, special ones as they are spelt."""

    prompt: str


class Version(BaseModel):
    """`/version`: of osd."""

    version: str


class Health(BaseModel):
    """The answer of `/health`."""

    status: Literal["ok"]


class Readiness(BaseModel):
    """The answer of `/ready`."""

    status: Literal["ready", "starting"]
