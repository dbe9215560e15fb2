"""From `thinking_token_budget` to the engine's limit on reasoning."""

from __future__ import annotations

from collections.abc import Sequence

from osd.records.asked.limits import ThinkingLimit
from serving.answering.sampling import check_ids
from serving.codec import Codec
from serving.wire.errors import ApiError

_BEGIN, _END = "<think>", "</think>"
_PROMPT_END_TOKENS = 64
"""Enough for what a chat template writes of the answer's message."""


def opens_reasoning(codec: Codec, prompt_ids: Sequence[int]) -> bool:
    """Whether a prompt ends with the mark that begins reasoning."""
    return codec.decode_all(prompt_ids[-_PROMPT_END_TOKENS:]).rstrip().endswith(_BEGIN)


def thinking_limit(budget_tokens: int, codec: Codec, prompt_ids: Sequence[int]) -> ThinkingLimit | None:
    """The limit of one query; None: it may reason as long as it likes.

    Args:
        budget_tokens: most tokens of reasoning; -1: no limit.
        codec: knows the chat template and the marks' tokens.
        prompt_ids: the query's prompt.

    Raises:
        ApiError: 400, the model does not reason, or lacks a mark's token.
    """
    if budget_tokens < 0:
        return None
    if not codec.features.reasoning:
        message = f"'thinking_token_budget': the chat template of {codec.model_id} has no {_BEGIN}; leave it out."
        raise ApiError(400, message, param="thinking_token_budget", code="unsupported_parameter")
    begin_ids, end_ids = (codec.encode_text(mark, add_special_tokens=False) for mark in (_BEGIN, _END))
    check_ids((*begin_ids, *end_ids), codec, "thinking_token_budget")
    return ThinkingLimit(
        max_tokens=budget_tokens, begin_ids=begin_ids, end_ids=end_ids, is_open=opens_reasoning(codec, prompt_ids)
    )
