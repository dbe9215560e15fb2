"""Answers in the shape of OpenAI's (plain) completions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from osd.types import TokenDelta, TokenLogprob
from serving.codec import Codec
from serving.generation import Choice
from serving.view_chat import MIN_LOGPROB


class CompletionView:
    """Shapes the choices of one completion request."""

    object = "text_completion"
    chunk_object = "text_completion"
    id_prefix = "cmpl-"

    def __init__(self, codec: Codec, *, logprobs: bool) -> None:
        self._codec = codec
        self._logprobs = logprobs
        self._offsets: defaultdict[int, int] = defaultdict(int)

    def choice(self, index: int, choice: Choice) -> dict[str, Any]:
        """A finished choice."""
        return self._shape(index, choice.text, choice.logprobs, choice.finish_reason)

    def opening(self, index: int) -> None:
        """Plain completions have no opening piece."""

    def piece(self, index: int, delta: TokenDelta) -> dict[str, Any] | None:
        """One piece of a stream; None while there is nothing to send."""
        if not (delta.text or delta.finish_reason or (self._logprobs and delta.logprobs)):
            return None
        return self._shape(index, delta.text, delta.logprobs, delta.finish_reason)

    def _shape(
        self, index: int, text: str, logprobs: Sequence[TokenLogprob], finish_reason: str | None
    ) -> dict[str, Any]:
        shaped = self._shape_logprobs(index, logprobs) if self._logprobs else None
        return {"index": index, "text": text, "logprobs": shaped, "finish_reason": finish_reason}

    def _shape_logprobs(self, index: int, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
        """Offsets count characters from the beginning of the answer, not of the prompt."""
        tokens, offsets, tops = [], [], []
        for one in logprobs:
            text = self._codec.token_text(one.token_id)
            tokens.append(text)
            offsets.append(self._offsets[index])
            self._offsets[index] += len(text)
            ranked = {self._codec.token_text(token_id): max(logprob, MIN_LOGPROB) for token_id, logprob in one.top}
            tops.append(ranked | {text: max(one.logprob, MIN_LOGPROB)})
        return {
            "tokens": tokens,
            "token_logprobs": [max(one.logprob, MIN_LOGPROB) for one in logprobs],
            "top_logprobs": tops,
            "text_offset": offsets,
        }
