"""A model's tokenizer as osd uses it: encoding prompts and chats, decoding answers as they grow."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from osd.config.target import TargetConfig
from osd.models.context import longest_context
from osd.records.errors import OsdError, reason
from osd.text.chat_template import (
    DEFAULT_OPTIONS,
    ChatFeatures,
    ChatOptions,
    ChatTemplate,
    Message,
    Tools,
    replace_template,
)
from osd.text.end_tokens import end_token_ids
from osd.text.generation_config import SamplingDefaults, sampling_defaults
from osd.text.offsets import TextOffsets
from osd.text.plain_content import PlainContent
from osd.text.stream import ByteStream, NeighbourStream, TextStream, unfinished_end
from osd.text.token_bytes import special_ids, token_bytes

_FEW_TEXTS = 1 << 14
_FEW_TEMPLATES = 8
_CONTEXT_TOKENS = 5
"""Prompt tokens decoded together with the first tokens of an answer: enough for a split character or word."""


class TextCodec:
    """Encodes and decodes text with one model's tokenizer.

    Args:
        tokenizer: a transformers tokenizer.
        model_id: the name under which the model is served.
        context_tokens: longest prompt + output of one query.
        vocab_tokens: size of the model's vocabulary, which may differ from the tokenizer's; None takes the tokenizer's.
        special_tokens_in_messages: True reads a special token that is spelt in a message as that token; False reads
            the spelling as plain text.
        sampling_defaults: the values of what requests leave out; None: the API's own.
        end_ids: tokens that end an answer; None: the tokenizer's own.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        model_id: str,
        context_tokens: int,
        vocab_tokens: int | None = None,
        special_tokens_in_messages: bool = False,
        sampling_defaults: SamplingDefaults | None = None,
        end_ids: frozenset[int] | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        own_end = getattr(tokenizer, "eos_token_id", None)
        self.end_ids = (frozenset() if own_end is None else frozenset({own_end})) if end_ids is None else end_ids
        self.sampling_defaults = sampling_defaults or SamplingDefaults()
        self.model_id = model_id
        self.context_tokens = context_tokens
        self.vocab_tokens = len(tokenizer) if vocab_tokens is None else vocab_tokens
        self._special_tokens_in_messages = special_tokens_in_messages
        backend = getattr(tokenizer, "backend_tokenizer", None)
        # transformers' decode() takes twice as long as the Rust backend's, and may change the text
        # ("clean_up_tokenization_spaces").
        self._decoder = tokenizer if backend is None else backend
        self._decode_again = lru_cache(_FEW_TEXTS)(self.decode)
        self._bytes = None if backend is None else token_bytes(backend)
        self._special_ids = (
            special_ids(backend) if backend is not None else frozenset(getattr(tokenizer, "all_special_ids", ()))
        )
        self._bytes_after_text = lru_cache(_FEW_TEXTS)(self._find_bytes)
        self._renderer = lru_cache(_FEW_TEMPLATES)(self._make_renderer)

    @classmethod
    def open(
        cls,
        folder: Path,
        model_id: str,
        max_context_tokens: int | None,
        *,
        special_tokens_in_messages: bool = False,
        chat_template: str = "",
        generation_config: str = "osd",
        trust_remote_code: bool = False,
    ) -> TextCodec:
        """Load the tokenizer of a model folder.

        Args:
            folder: the model's.
            model_id: the name under which the model is served.
            max_context_tokens: longest prompt + output of one query, as far as the model allows; None: the model's own.
            special_tokens_in_messages: as for the codec itself.
            chat_template: Jinja text, or a file of it, to be used instead of the model's own.
            generation_config: where sampling defaults come from (see `osd.text.generation_config`).
            trust_remote_code: run Python code that the folder holds, where its tokenizer needs it.

        Raises:
            OsdError: it cannot be loaded.
        """
        from transformers import AutoConfig, AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
            config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code).get_text_config()
        except Exception as error:
            raise OsdError(f"cannot load the tokenizer of {folder}: {reason(error)}") from error
        if chat_template:
            replace_template(tokenizer, chat_template)
        return cls(
            tokenizer,
            model_id=model_id,
            context_tokens=longest_context(config, max_context_tokens),
            vocab_tokens=getattr(config, "vocab_size", None),
            special_tokens_in_messages=special_tokens_in_messages,
            sampling_defaults=sampling_defaults(folder, generation_config),
            end_ids=end_token_ids(folder, tokenizer),
        )

    @classmethod
    def configured(cls, folder: Path, model_id: str, target: TargetConfig) -> TextCodec:
        """As `open`, with everything that the configuration says of the target's tokenizer."""
        return cls.open(
            folder,
            model_id,
            target.max_context_tokens,
            special_tokens_in_messages=target.special_tokens_in_messages,
            chat_template=target.chat_template,
            generation_config=target.generation_config,
            trust_remote_code=target.trust_remote_code,
        )

    # ---- text to ids -----------------------------------------------------------------------------------------------

    def encode_text(self, text: str, *, add_special_tokens: bool = True) -> tuple[int, ...]:
        """Token ids of a plain prompt. A special token's spelling becomes that token.

        Args:
            text: the prompt.
            add_special_tokens: begin (or end) with those that the tokenizer puts around a text.
        """
        return tuple(self.tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"])

    def encode_chat(
        self, messages: Sequence[Message], tools: Tools = (), options: ChatOptions = DEFAULT_OPTIONS
    ) -> tuple[int, ...]:
        """Token ids of a conversation, by default ending where the assistant's answer begins.

        Args:
            messages: `role` and `content` (a string, or a list of `{"type": "text", "text": …}`), and any other keys
                that the template reads.
            tools: what the model may call.
            options: how it is rendered.

        Raises:
            ValueError: there is no chat template, or it refuses these messages.
        """
        if not (self.tokenizer.chat_template or options.template):
            raise ValueError(f"{self.model_id} has no chat template; use /v1/completions")
        try:
            template, plain_content = self._renderer(options.template)
            adapted = template.adapted(messages)
            if plain_content is not None and plain_content.is_needed(adapted, tools, options):
                ids = plain_content.encode(adapted, tools, options)
            else:
                ids = self.encode_text(template.render(adapted, tools, options), add_special_tokens=False)
            return self._with_special_tokens(ids) if options.add_special_tokens else ids
        except Exception as error:  # templates are programs and raise any type of exception
            whose = f"the chat template of {self.model_id}" if options.template is None else "this chat template"
            raise ValueError(f"{whose} refuses these messages: {error}") from error

    def _with_special_tokens(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        """The ids between those that the tokenizer puts around a text."""
        bare, whole = (self.encode_text("a", add_special_tokens=added) for added in (False, True))
        num_before = next(at for at in range(len(whole)) if whole[at : at + len(bare)] == bare)
        return (*whole[:num_before], *ids, *whole[num_before + len(bare) :])

    @property
    def features(self) -> ChatFeatures:
        """What the model's chat template can do beside plain messages; nothing without a template."""
        return self._renderer(None)[0].features if self.tokenizer.chat_template else ChatFeatures()

    def features_of(self, template: str) -> ChatFeatures:
        """What a template that a request brings can do."""
        return self._renderer(template)[0].features

    def _make_renderer(self, source: str | None) -> tuple[ChatTemplate, PlainContent | None]:
        """A template (None: the model's), and what keeps special tokens out of messages, if anything does."""
        tokenizer = self.tokenizer
        if source is not None:
            tokenizer = copy(tokenizer)
            tokenizer.chat_template = source
        template = ChatTemplate(tokenizer)
        return template, None if self._special_tokens_in_messages else PlainContent(tokenizer, template)

    # ---- ids to text -----------------------------------------------------------------------------------------------

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens at the start of a text, without special tokens."""
        return str(self._decoder.decode(ids, skip_special_tokens=True))

    def decode_all(self, ids: Sequence[int]) -> str:
        """The text of tokens that begin a text, with special tokens as they are spelt."""
        return str(self._decoder.decode(ids, skip_special_tokens=False))

    def stream(self, prompt_ids: Sequence[int] = (), *, skip_special_tokens: bool = True) -> TextStream:
        """A decoder for one answer, fed its tokens as they come; the text is what follows the prompt's.

        Args:
            prompt_ids: the prompt.
            skip_special_tokens: leave special tokens out; False writes them as they are spelt.
        """
        if self._bytes is not None:
            unfinished, is_first = self._prompt_end(prompt_ids)
            return ByteStream(
                self._bytes.by_id if skip_special_tokens else self._all_bytes,
                unfinished=unfinished,
                drop_space=is_first and self._bytes.drops_first_space,
            )
        context: list[int] = []
        for token in reversed(prompt_ids):
            if token not in self._special_ids:
                context.append(token)
            if len(context) == _CONTEXT_TOKENS:
                break
        if not skip_special_tokens:
            return NeighbourStream(
                self.decode_all, self.decode_all, context=context[::-1], has_bytes=self._may_hold_bytes
            )
        # A decoder without a byte step yields U+FFFD only for the character U+FFFD itself.
        return NeighbourStream(self.decode, self._decode_again, context=context[::-1], has_bytes=self._may_hold_bytes)

    def answer_text(self, prompt_ids: Sequence[int], ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of a whole answer to a prompt; see `stream`."""
        stream = self.stream(prompt_ids, skip_special_tokens=skip_special_tokens)
        return stream.read(ids) + stream.rest()

    def offsets(self, prompt_ids: Sequence[int] = ()) -> TextOffsets:
        """Counts at which character of an answer's text each token begins."""
        unfinished, is_first = self._prompt_end(prompt_ids)
        return TextOffsets(
            unfinished=unfinished,
            drop_space=is_first and self._bytes is not None and self._bytes.drops_first_space,
        )

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token adds in the middle of a text; empty for a special token."""
        if token_id in self._special_ids:
            return b""
        return self._bytes_after_text(token_id) if self._bytes is None else self._bytes.by_id.get(token_id, b"")

    def bytes_by_id(self) -> list[bytes] | None:
        """The bytes of every token of the model, special tokens as they are spelt; empty for ids of no token.

        None for tokenizers in which a token's text depends on its neighbours.
        """
        if self._bytes is None:
            return None
        table = [self._bytes.by_id.get(token_id, b"") for token_id in range(self.vocab_tokens)]
        for token_id in self.special_token_ids():
            table[token_id] = str(self.tokenizer.decode([token_id])).encode()
        return table

    @cached_property
    def _all_bytes(self) -> dict[int, bytes]:
        return dict(enumerate(self.bytes_by_id() or ()))

    def special_token_ids(self) -> list[int]:
        """Special tokens of the model, which add no text."""
        return sorted(token_id for token_id in self._special_ids if token_id < self.vocab_tokens)

    def token_text(self, token_id: int) -> str:
        r"""The text of one token; special tokens as spelt, bytes that form no whole character as `\xf0\x9f`."""
        if token_id in self._special_ids:
            return str(self.tokenizer.decode([token_id]))
        data = self.token_bytes(token_id)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "".join(f"\\x{byte:02x}" for byte in data)

    def _prompt_end(self, prompt_ids: Sequence[int]) -> tuple[bytes, bool]:
        """The bytes of an unfinished character at the prompt's end, and whether the prompt adds no text at all."""
        if self._bytes is None:
            return b"", False
        end = b""
        for token in reversed(prompt_ids):
            end = self._bytes.by_id.get(token, b"") + end
            if len(end) >= 3:
                break
        return unfinished_end(end), not end

    @cached_property
    def _may_hold_bytes(self) -> bool:
        decoder = getattr(self._decoder, "decoder", None)
        if self._decoder is self.tokenizer:
            return True
        return decoder is not None and any(kind in decoder.__getstate__() for kind in (b"ByteFallback", b"ByteLevel"))

    def _find_bytes(self, token_id: int) -> bytes:
        # After another token, a token keeps the leading space that some tokenizers strip from a text's first token.
        return self.decode([token_id, token_id])[len(self.decode([token_id])) :].encode()
