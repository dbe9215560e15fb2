"""The parts of a response that do not depend on how it is sent: its head, and a part of a message."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from serving.responses.request import ResponsesRequest, TextOptions


def response_head(body: ResponsesRequest, *, answer_id: str, model: str, created_s: int, status: str) -> dict[str, Any]:
    """A response without output.

    Args:
        body: the request, many fields of which are repeated.
        answer_id: id of the response.
        model: the name of the model that answers.
        created_s: when it was asked for, in seconds since 1970.
        status: what has become of it.
    """
    return {
        "id": answer_id,
        "object": "response",
        "created_at": created_s,
        "completed_at": None,
        "status": status,
        "background": body.background,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata,
        "model": model,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls,
        "previous_response_id": body.previous_response_id,
        "reasoning": {"effort": body.reasoning.effort if body.reasoning else None, "summary": None},
        "service_tier": "default",
        "store": body.store,
        "temperature": body.temperature,
        "text": (body.text or TextOptions()).as_sent(),
        "tool_choice": body.tool_choice if isinstance(body.tool_choice, str) else body.tool_choice.model_dump(),
        "tools": [tool.as_sent() for tool in body.tools],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": body.top_p,
        "truncation": body.truncation,
        "usage": None,
        "user": body.user,
    }


def output_text(text: str, logprobs: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """A part of the assistant's message."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(logprobs)}
