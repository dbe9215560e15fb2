"""The text of tokens as they come: whole characters only, and nothing that is taken back."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from tokenizers.decoders import ByteLevel

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class TextStream(Protocol):
    """One answer's."""

    def read(self, ids: Sequence[int]) -> str:
        """What more tokens add, but for an unfinished character at the end."""
        ...

    def rest(self) -> str:
        """What an unfinished character leaves, when nothing follows."""
        ...


class ByteStream:
    """Of a byte-level tokenizer, whose tokens are bytes whatever stands beside them.

    Args:
        bytes_of: by token; a token that it does not name has no text.
    """

    __slots__ = ("_bytes_of", "_unfinished")

    def __init__(self, bytes_of: Mapping[int, bytes]) -> None:
        self._bytes_of, self._unfinished = bytes_of, b""

    def read(self, ids: Sequence[int]) -> str:
        """See `TextStream`."""
        come = self._unfinished + b"".join([self._bytes_of.get(token, b"") for token in ids])
        text, num_read = codecs.utf_8_decode(come, "replace")
        self._unfinished = come[num_read:]
        return text

    def rest(self) -> str:
        """See `TextStream`."""
        text, _ = codecs.utf_8_decode(self._unfinished, "replace", True)
        self._unfinished = b""
        return text


class NeighbourStream:
    """Of any tokenizer: a few tokens back are decoded again, since spaces and characters may depend on neighbours.

    Args:
        decode: the text of tokens.
        decode_again: likewise, of tokens that are often the same.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], decode_again: Callable[[tuple[int, ...]], str]) -> None:
        self._decode, self._decode_again = decode, decode_again
        self._ids: list[int] = []
        """From the first one that is decoded again."""
        self._num_read = 0
        """Of them, those whose text was given out."""

    def read(self, ids: Sequence[int]) -> str:
        """See `TextStream`."""
        self._ids.extend(ids)
        before = self._decode_again(tuple(self._ids[: self._num_read]))
        after = self._decode(self._ids)
        if len(after) <= len(before) or after.endswith(_REPLACEMENT):
            return ""
        self._ids = self._ids[self._num_read :]
        self._num_read = len(self._ids)
        return after[len(before) :]

    def rest(self) -> str:
        """See `TextStream`."""
        if self._num_read == len(self._ids):
            return ""
        before, after = self._decode(self._ids[: self._num_read]), self._decode(self._ids)
        self._num_read = len(self._ids)
        return after[len(before) :]


def bytes_by_token(backend: Any) -> dict[int, bytes] | None:
    """What each token of a byte-level tokenizer (of the `tokenizers` library) stands for, special ones left out.

    Returns:
        None for a tokenizer of another kind.
    """
    if not isinstance(backend.decoder, ByteLevel):
        return None
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    byte_of = {ord(letter): byte for byte, letter in bytes_to_unicode().items()}
    special = {index for index, added in backend.get_added_tokens_decoder().items() if added.special}

    def to_bytes(token: str) -> bytes:
        try:
            return bytes([byte_of[ord(letter)] for letter in token])
        except KeyError:  # an added token, which is written as it is
            return token.encode()

    return {index: to_bytes(token) for token, index in backend.get_vocab().items() if index not in special}
