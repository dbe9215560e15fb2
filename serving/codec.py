"""What the routes know of the target's tokenizer. `osd.text` implements it; tests fake it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol


class Codec(Protocol):
    """Text to token ids and back."""

    vocab_tokens: int
    """Ids run from 0 to this, exclusive."""
    context_tokens: int
    """Longest prompt + output of one query."""
    model_id: str
    """The name under which the target is served."""

    def encode_text(self, text: str) -> tuple[int, ...]:
        """Token ids of a plain prompt."""
        ...

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> tuple[int, ...]:
        """Token ids of a conversation, ready for the assistant's answer.

        Raises:
            ValueError: with the reason, if the model has no chat template or the template refuses the messages.
        """
        ...

    def token_text(self, token_id: int) -> str:
        """The text of one token, special or not."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of an answer, without special tokens."""
        ...
