"""What the routes know of the target's tokenizer. `osd.text.codec` implements it; tests fake it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from osd.text.chat_template import Message
from osd.text.offsets import TextOffsets


class Codec(Protocol):
    """Text to token ids and back."""

    vocab_tokens: int
    """Ids that the model knows run from 0 to this, exclusive; the tokenizer may know more."""
    context_tokens: int
    """Longest prompt + output of one query."""
    model_id: str
    """The name under which the target is served."""

    def encode_text(self, text: str) -> tuple[int, ...]:
        """Token ids of a plain prompt. The spelling of a special token is that token."""
        ...

    def encode_chat(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Token ids of a conversation, ready for the assistant's answer.

        Raises:
            ValueError: with the reason, if the model has no chat template or the template refuses the messages.
        """
        ...

    def token_text(self, token_id: int) -> str:
        r"""The text of one token; a special token as it is spelt, bytes that are no whole characters as `\xf0\x9f`."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """What a token adds to a text that has begun; nothing for a special token."""
        ...

    def offsets(self, prompt_ids: Sequence[int]) -> TextOffsets:
        """Where the tokens of an answer to this prompt begin in its text."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of an answer, without special tokens."""
        ...
