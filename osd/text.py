"""Text to token ids and back: prompts, chat templates, answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from osd.reason import reason
from osd.text_stream import ByteStream, NeighbourStream, TextStream, bytes_by_token
from osd.types import OsdError

_FEW_TEXTS = 1 << 14


class TextCodec:
    """A model's tokenizer, as the server and the engine need it."""

    def __init__(self, tokenizer: Any, *, model_id: str, context_tokens: int) -> None:
        self.tokenizer = tokenizer
        self.model_id = model_id
        self.context_tokens = context_tokens
        self.vocab_tokens = len(tokenizer)
        backend = getattr(tokenizer, "backend_tokenizer", None)
        # transformers adds nothing to most tokenizers' decoding, but takes twice as long over it.
        self._decoder = tokenizer if backend is None or tokenizer.clean_up_tokenization_spaces else backend
        self._decode_again = lru_cache(_FEW_TEXTS)(self.decode)
        self._bytes_of = None if self._decoder is tokenizer else bytes_by_token(backend)

    @classmethod
    def open(cls, folder: Path, model_id: str, max_context_tokens: int) -> TextCodec:
        """Load the tokenizer of a model folder.

        Raises:
            OsdError: it cannot be loaded.
        """
        from transformers import AutoConfig, AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(folder)
            config = AutoConfig.from_pretrained(folder).get_text_config()
        except Exception as error:
            raise OsdError(f"cannot load the tokenizer of {folder}: {reason(error)}") from error
        limit = getattr(config, "max_position_embeddings", None) or max_context_tokens
        return cls(tokenizer, model_id=model_id, context_tokens=min(max_context_tokens, limit))

    def encode_text(self, text: str) -> tuple[int, ...]:
        """Token ids of a plain prompt."""
        return tuple(self.tokenizer(text)["input_ids"])

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> tuple[int, ...]:
        """Token ids of a conversation, ready for the assistant's answer.

        Raises:
            ValueError: the model has no chat template, or its template refuses these messages.
        """
        if not self.tokenizer.chat_template:
            raise ValueError(f"{self.model_id} has no chat template; use /v1/completions")
        try:
            ids = self.tokenizer.apply_chat_template(
                [dict(message) for message in messages], add_generation_prompt=True, return_dict=False
            )
        except Exception as error:  # templates are programs, and raise what they like
            raise ValueError(f"the chat template of {self.model_id} refuses these messages: {error}") from error
        return tuple(ids)

    def token_text(self, token_id: int) -> str:
        """The text of one token, special or not."""
        return str(self.tokenizer.decode([token_id]))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of an answer, without special tokens."""
        return str(self._decoder.decode(ids, skip_special_tokens=True))

    def stream(self) -> TextStream:
        """The same of one answer, as its tokens come."""
        if self._bytes_of is not None:
            return ByteStream(self._bytes_of)
        return NeighbourStream(self.decode, self._decode_again)

    def eos_ids(self, folder: Path) -> frozenset[int]:
        """Tokens that end an answer: the generation config's, else the tokenizer's."""
        from transformers import GenerationConfig

        try:
            eos: Any = GenerationConfig.from_pretrained(folder).eos_token_id
        except OSError:
            eos = None
        if eos is None:
            eos = self.tokenizer.eos_token_id
        if eos is None:
            return frozenset()
        return frozenset(eos if isinstance(eos, list) else [eos])
