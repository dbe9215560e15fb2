"""Text to token ids and back: prompts, chat templates, and the incremental text of an answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from osd.types import OsdError

_FEW_TEXTS = 1 << 14
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


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
        self.decode_again = lru_cache(_FEW_TEXTS)(self.decode)
        """`decode` of a few tokens that are often the same."""

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
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise OsdError(f"cannot load the tokenizer of {folder}: {reason}") from error
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


class AnswerText:
    """The growing text of one answer: whole characters only, stop strings cut off, their beginnings held back."""

    def __init__(self, codec: TextCodec, stop: Sequence[str] = ()) -> None:
        self._codec = codec
        self._stop = tuple(stop)
        self._longest_stop_chars = max(map(len, stop), default=0)
        self._ids: list[int] = []
        self._prefix = 0
        self._read = 0
        self._text = ""
        self._emitted_chars = 0
        self.stopped = False

    def push(self, token_id: int) -> bool:
        """Add a token; True when a stop string is now complete (the text ends before it)."""
        self._ids.append(token_id)
        if self._stop:  # else the text is wanted only when it is taken
            self._read_on()
        return self.stopped

    def _read_on(self) -> None:
        """Decode what was pushed since, unless it ends within a character."""
        # Decoding from a few tokens back keeps what depends on neighbours (spaces, multi-token characters) right.
        before = self._codec.decode_again(tuple(self._ids[self._prefix : self._read]))
        after = self._codec.decode(self._ids[self._prefix :])
        if len(after) <= len(before) or after.endswith(_REPLACEMENT):
            return
        self._prefix, self._read = self._read, len(self._ids)
        self._append(after[len(before) :])

    def _append(self, text: str) -> None:
        self._text += text
        if not self._stop:
            return
        searched_from = max(0, len(self._text) - len(text) - self._longest_stop_chars)
        found = [at for stop in self._stop if (at := self._text.find(stop, searched_from)) >= 0]
        if found:
            self._text = self._text[: min(found)]
            self.stopped = True

    def take(self, *, final: bool = False) -> str:
        """Text not yet handed out; `final` also hands out what was held back."""
        if not self._stop and self._read < len(self._ids):
            self._read_on()
        if final and not self.stopped and self._read < len(self._ids):
            before = self._codec.decode(self._ids[self._prefix : self._read])
            self._append(self._codec.decode(self._ids[self._prefix :])[len(before) :])
            self._read = len(self._ids)
        end = len(self._text)
        if self._stop and not (final or self.stopped):
            end -= self._held_back()
        start, self._emitted_chars = self._emitted_chars, max(end, self._emitted_chars)
        return self._text[start:end]

    def skip(self, num_chars: int) -> None:
        """The client already has this many characters (a resumed query)."""
        self._emitted_chars = num_chars

    def _held_back(self) -> int:
        """Length of the longest tail that may be the beginning of a stop string."""
        longest = 0
        for stop in self._stop:
            for size in range(min(len(stop) - 1, len(self._text)), longest, -1):
                if self._text.endswith(stop[:size]):
                    longest = size
                    break
        return longest
