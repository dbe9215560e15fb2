"""The target's tokenizer as the routes use it. Implemented by `osd.text.codec.TextCodec`; tests fake it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from osd.text.chat_template import DEFAULT_OPTIONS, ChatFeatures, ChatOptions, Message, Tools
from osd.text.generation_config import SamplingDefaults
from osd.text.offsets import TextOffsets


class Codec(Protocol):
    """Encodes prompts and chats, and decodes tokens."""

    vocab_tokens: int
    """The model's vocabulary size: valid ids are below it. The tokenizer's vocabulary may be larger."""
    context_tokens: int
    """Longest prompt + output of one query."""
    model_id: str
    """The name under which the target is served."""
    sampling_defaults: SamplingDefaults
    """The values of what requests leave out."""
    end_ids: frozenset[int]
    """Tokens that end an answer."""

    def encode_text(self, text: str, *, add_special_tokens: bool = True) -> tuple[int, ...]:
        """Token ids of a plain prompt. A special token's spelling becomes that token.

        Args:
            text: the prompt.
            add_special_tokens: begin (or end) with those that the tokenizer puts around a text.
        """
        ...

    def encode_chat(
        self, messages: Sequence[Message], tools: Tools = (), options: ChatOptions = DEFAULT_OPTIONS
    ) -> tuple[int, ...]:
        """Token ids of a conversation, by default ending where the assistant's answer begins.

        Raises:
            ValueError: with the reason, if the model has no chat template or the template refuses the messages.
        """
        ...

    @property
    def features(self) -> ChatFeatures:
        """What the chat template can do beside plain messages."""
        ...

    def features_of(self, template: str) -> ChatFeatures:
        """What a template that a request brings can do."""
        ...

    def token_text(self, token_id: int) -> str:
        r"""The text of one token; special tokens as spelt, bytes that form no whole character as `\xf0\x9f`."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token adds in the middle of a text; empty for a special token."""
        ...

    def offsets(self, prompt_ids: Sequence[int]) -> TextOffsets:
        """Counts at which character of an answer's text each token begins."""
        ...

    def answer_text(self, prompt_ids: Sequence[int], ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of a whole answer to a prompt.

        Args:
            prompt_ids: the prompt, whose text the answer's follows.
            ids: the answer.
            skip_special_tokens: leave special tokens out; False writes them as they are spelt.
        """
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of an answer, without special tokens."""
        ...

    def decode_all(self, ids: Sequence[int]) -> str:
        """The text of tokens, with special tokens as they are spelt."""
        ...
