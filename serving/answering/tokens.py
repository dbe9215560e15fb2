"""The fields of an answer that tell of single tokens: ids, and log-probabilities of the prompt, as vLLM writes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from osd.records.query import TokenDelta, TokenLogprob
from serving.answering.generation import Choice
from serving.codec import Codec
from serving.wire.request_base import GenerationFields

MIN_LOGPROB = -9999.0
"""Replaces minus infinity, which JSON lacks; vLLM sends the same number."""


def token_entry(codec: Codec, token_id: int, logprob: float, spelt: str | None = None) -> dict[str, Any]:
    """A token's log-probability as chats tell of it; `bytes` are what it adds to the answer, none for a special token.

    Args:
        codec: the target's tokenizer.
        token_id: the token.
        logprob: its log-probability.
        spelt: how it is named; None: by its text.
    """
    return {
        "token": codec.token_text(token_id) if spelt is None else spelt,
        "logprob": max(logprob, MIN_LOGPROB),
        "bytes": list(codec.token_bytes(token_id)),
    }


@dataclass(slots=True)
class TokenFields:
    """Which of those fields one request asks for.

    Args:
        body: the request.
        codec: the target's tokenizer.
        prompts: the token ids of each choice's prompt.
    """

    body: GenerationFields
    codec: Codec
    prompts: Sequence[Sequence[int]]
    _begun: set[int] = field(default_factory=set)

    def of_choice(self, index: int, choice: Choice) -> dict[str, Any]:
        """The fields of a finished choice of plain completions."""
        return self.ids(choice.token_ids) | self.of_prompt(index, choice)

    def ids(self, token_ids: Sequence[int]) -> dict[str, Any]:
        """The answer's tokens."""
        return {"token_ids": list(token_ids)} if self.body.return_token_ids else {}

    def ids_of_prompt(self, index: int) -> dict[str, Any]:
        """The tokens of a choice's prompt."""
        return {"prompt_token_ids": list(self.prompts[index])} if self.body.return_token_ids else {}

    def of_prompt(self, index: int, choice: Choice) -> dict[str, Any]:
        """The fields that tell of a choice's prompt."""
        fields = self.ids_of_prompt(index)
        if self.body.prompt_logprobs is not None:
            fields["prompt_logprobs"] = [None, *map(self._by_id, choice.prompt_logprobs)]
        return fields

    def of_delta(self, index: int, delta: TokenDelta) -> dict[str, Any]:
        """The fields of a piece of a stream of plain completions; the prompt's tokens are in a choice's first."""
        fields = self.ids(delta.token_ids)
        if index not in self._begun:
            self._begun.add(index)
            fields |= self.ids_of_prompt(index)
        return fields

    def spelt(self, token_id: int, text: str) -> str:
        """How a token is named beside its log-probability."""
        return f"token_id:{token_id}" if self.body.return_tokens_as_token_ids else text

    def _by_id(self, one: TokenLogprob) -> dict[str, Any]:
        """Token id to log-probability, rank (where it is known) and text."""
        ranked = {token_id: (logprob, rank) for rank, (token_id, logprob) in enumerate(one.top, start=1)}
        ranked.setdefault(one.token_id, (one.logprob, None))  # type: ignore[arg-type]
        return {
            str(token_id): {
                "logprob": max(logprob, MIN_LOGPROB),
                "rank": rank,
                "decoded_token": self.codec.token_text(token_id),
            }
            for token_id, (logprob, rank) in ranked.items()
        }
