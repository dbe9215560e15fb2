"""Answers in the shape of OpenAI's chat completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from osd.records.query import TokenDelta, TokenLogprob
from serving.codec import Codec
from serving.generation import Choice

# Replaces minus infinity, which JSON lacks; vLLM sends the same number.
MIN_LOGPROB = -9999.0


class ChatView:
    """Builds the choices of one chat request."""

    object = "chat.completion"
    chunk_object = "chat.completion.chunk"
    id_prefix = "chatcmpl-"

    def __init__(self, codec: Codec, *, logprobs: bool) -> None:
        self._codec = codec
        self._logprobs = logprobs

    def choice(self, index: int, choice: Choice) -> dict[str, Any]:
        """A finished choice."""
        return {
            "index": index,
            "message": {"role": "assistant", "content": choice.text, "refusal": None},
            "logprobs": self._shape_logprobs(choice.logprobs),
            "finish_reason": choice.finish_reason,
        }

    def opening(self, index: int) -> dict[str, Any]:
        """The first chunk of a choice: the role."""
        return self._piece(index, {"role": "assistant", "content": ""}, (), None)

    def pieces(self, index: int, delta: TokenDelta) -> list[dict[str, Any]]:
        """A further piece, once there is something to send."""
        if not (delta.text or delta.finish_reason or (self._logprobs and delta.logprobs)):
            return []
        content = {"content": delta.text} if delta.text or self._logprobs else {}
        return [self._piece(index, content, delta.logprobs, delta.finish_reason)]

    def _piece(
        self, index: int, delta: dict[str, str], logprobs: Sequence[TokenLogprob], finish_reason: str | None
    ) -> dict[str, Any]:
        shaped = self._shape_logprobs(logprobs) if logprobs else None
        return {"index": index, "delta": delta, "logprobs": shaped, "finish_reason": finish_reason}

    def _shape_logprobs(self, logprobs: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        if not self._logprobs:
            return None
        content = [
            {**self._token(one.token_id, one.logprob), "top_logprobs": [self._token(*pair) for pair in one.top]}
            for one in logprobs
        ]
        return {"content": content, "refusal": None}

    def _token(self, token_id: int, logprob: float) -> dict[str, Any]:
        """A token's entry; `bytes` are what it adds to the answer, empty for a special token."""
        return {
            "token": self._codec.token_text(token_id),
            "logprob": max(logprob, MIN_LOGPROB),
            "bytes": list(self._codec.token_bytes(token_id)),
        }
