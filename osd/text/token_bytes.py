"""The bytes that each token adds to a text, for tokenizers in which they do not depend on neighbouring tokens.

These are byte-level BPE (GPT-2, Llama 3, Qwen) and SentencePiece-like tokenizers (Llama 2, Mistral, Gemma), which write
spaces as U+2581 and spell bytes without a piece of their own as `<0xF0>`. Other kinds (WordPiece, for one) are decoded
by `osd.text.stream.NeighbourStream`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

_BYTE_PIECE = re.compile("<0x([0-9A-F]{2})>")


class TokenBytes(NamedTuple):
    """The byte table of one tokenizer."""

    by_id: Mapping[int, bytes]
    """Token id to bytes; special tokens, which add no text, are missing."""
    drops_first_space: bool
    """Whether the first token of a text loses its leading space."""


def token_bytes(backend: Any) -> TokenBytes | None:
    """Build the byte table from a tokenizer's decoder.

    Args:
        backend: a tokenizer of the `tokenizers` library.

    Returns:
        None where a token's text depends on its neighbours, or the decoder has a step not known here.
    """
    if backend.decoder is None:
        return None
    steps = _flat(json.loads(backend.decoder.__getstate__()))
    drops_first_space = False
    if [step["type"] for step in steps] == ["ByteLevel"]:
        to_bytes = _byte_level()
    else:
        spaces, has_byte_pieces, fused = [], False, False
        for step in steps:
            match step:
                case {"type": "Replace", "pattern": {"String": old}, "content": new} if len(old) == 1:
                    spaces.append((old, new))
                case {"type": "ByteFallback"}:
                    has_byte_pieces = True
                case {"type": "Fuse"}:
                    fused = True
                case {"type": "Strip", "content": " ", "start": 1, "stop": 0} if fused:
                    drops_first_space = True
                case {"type": "Metaspace", "replacement": old, "prepend_scheme": scheme}:
                    spaces.append((old, " "))
                    drops_first_space = scheme != "never"
                case _:
                    return None
        to_bytes = _sentencepiece(spaces, has_byte_pieces)
    special = special_ids(backend)
    by_id = {index: to_bytes(token) for token, index in backend.get_vocab().items() if index not in special}
    return TokenBytes(by_id, drops_first_space)


def special_ids(backend: Any) -> frozenset[int]:
    """Ids of the special tokens, such as ends of turns, which add no text."""
    return frozenset(index for index, added in backend.get_added_tokens_decoder().items() if added.special)


def _flat(decoder: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    if decoder["type"] == "Sequence":
        return [step for one in decoder["decoders"] for step in _flat(one)]
    return [decoder]


def _byte_level() -> Callable[[str], bytes]:
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    byte_of = {ord(letter): byte for byte, letter in bytes_to_unicode().items()}

    def to_bytes(token: str) -> bytes:
        try:
            return bytes([byte_of[ord(letter)] for letter in token])
        except KeyError:  # an added token, stored as plain text
            return token.encode()

    return to_bytes


def _sentencepiece(spaces: list[tuple[str, str]], has_byte_pieces: bool) -> Callable[[str], bytes]:
    def to_bytes(token: str) -> bytes:
        if has_byte_pieces and (found := _BYTE_PIECE.fullmatch(token)):
            return bytes([int(found[1], 16)])
        for old, new in spaces:
            token = token.replace(old, new)
        return token.encode()

    return to_bytes
