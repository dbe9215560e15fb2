"""A stand-in for the target's tokenizer: one token a character."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from osd.text.chat_template import DEFAULT_OPTIONS, ChatFeatures, ChatOptions
from osd.text.generation_config import SamplingDefaults
from osd.text.offsets import TextOffsets


class FakeCodec:
    """One token a character: its code point."""

    def __init__(
        self,
        *,
        model_id: str = "fake-model",
        context_tokens: int = 128,
        vocab_tokens: int = 0x3000,
        has_chat_template: bool = True,
        features: ChatFeatures | None = None,
        prompt_end: str = "",
    ) -> None:
        self.features, self._prompt_end = features or ChatFeatures(), prompt_end
        self.sampling_defaults = SamplingDefaults()
        self.model_id = model_id
        self.context_tokens = context_tokens
        self.vocab_tokens = vocab_tokens
        self.end_ids = frozenset[int]()
        self.has_chat_template = has_chat_template

    def encode_text(self, text: str, *, add_special_tokens: bool = True) -> tuple[int, ...]:
        return tuple(ord(char) for char in text)

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        options: ChatOptions = DEFAULT_OPTIONS,
    ) -> tuple[int, ...]:
        if not self.has_chat_template:
            raise ValueError(f"{self.model_id} has no chat template; use /v1/completions")
        told = "".join(tool["function"]["name"] for tool in tools)
        said = "".join(
            f"<{one['role']}>{one['content']}{''.join(call['function']['name'] for call in one.get('tool_calls', ()))}"
            for one in messages
        )
        variables = json.dumps(options.variables) if options.variables else ""
        end = f"<assistant>{self._prompt_end}" if options.add_generation_prompt else ""
        return self.encode_text(f"{options.template or ''}{told}{said}{variables}{end}")

    def features_of(self, template: str) -> ChatFeatures:
        return ChatFeatures()

    def token_text(self, token_id: int) -> str:
        return chr(token_id) if token_id < 0x110000 else ""

    def token_bytes(self, token_id: int) -> bytes:
        return chr(token_id).encode()

    def offsets(self, prompt_ids: Sequence[int]) -> TextOffsets:
        return TextOffsets()

    def answer_text(self, prompt_ids: Sequence[int], ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return self.decode(ids)

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))

    def decode_all(self, ids: Sequence[int]) -> str:
        return self.decode(ids)
