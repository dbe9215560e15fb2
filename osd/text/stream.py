"""Incremental decoding: the text of an answer's tokens as they come, in whole characters, never revised.

An answer's text is what follows its prompt's text, so decoding starts from the prompt's end: the answer's first word
keeps its leading space, and an unfinished character at the prompt's end can be completed by the answer's first bytes.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class TextStream(Protocol):
    """Decodes the tokens of one answer."""

    def read(self, ids: Sequence[int]) -> str:
        """The text that these tokens add, except for an unfinished character at its end."""
        ...

    def rest(self) -> str:
        """Text still pending at the end of the answer; a character that was never finished is dropped."""
        ...


class ByteStream:
    """For tokenizers in which each token stands for fixed bytes, whatever its neighbours.

    Args:
        bytes_of: token id to bytes; a token that is missing adds no text.
        unfinished: bytes of an unfinished character before the first token.
        drop_space: leave out a space at the very beginning.
    """

    __slots__ = ("_bytes_of", "_drop_space", "_unfinished")

    def __init__(self, bytes_of: Mapping[int, bytes], *, unfinished: bytes = b"", drop_space: bool = False) -> None:
        self._bytes_of, self._unfinished, self._drop_space = bytes_of, unfinished, drop_space

    def read(self, ids: Sequence[int]) -> str:
        """See `TextStream`."""
        come = self._unfinished + b"".join([self._bytes_of.get(token, b"") for token in ids])
        if self._drop_space and come:
            come, self._drop_space = come.removeprefix(b" "), False
        text, num_read = codecs.utf_8_decode(come, "replace")
        self._unfinished = come[num_read:]
        return text

    def rest(self) -> str:
        """See `TextStream`."""
        self._unfinished = b""
        return ""


class NeighbourStream:
    """For any tokenizer: decodes the last few tokens again, since spaces and characters may depend on neighbours.

    Args:
        decode: tokens to text.
        decode_again: the same function, cached, for sequences that are decoded more than once.
        context: the last tokens before the answer.
        has_bytes: True where a U+FFFD at the end may be an unfinished character.
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        decode_again: Callable[[tuple[int, ...]], str],
        *,
        context: Sequence[int] = (),
        has_bytes: bool = True,
    ) -> None:
        self._decode, self._decode_again, self._has_bytes = decode, decode_again, has_bytes
        self._ids: list[int] = list(context)
        """The tokens that are still decoded, oldest first: already handed out ones, then new ones."""
        self._num_read = len(self._ids)
        """How many of `_ids` have had their text handed out."""

    def read(self, ids: Sequence[int]) -> str:
        """See `TextStream`."""
        self._ids.extend(ids)
        before = self._decode_again(tuple(self._ids[: self._num_read]))
        after = self._decode(self._ids)
        if len(after) <= len(before) or (self._has_bytes and after.endswith(_REPLACEMENT)):
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
        return after[len(before) :].rstrip(_REPLACEMENT)


def unfinished_end(data: bytes) -> bytes:
    """The bytes of an unfinished UTF-8 character at the end of `data`."""
    end = data[-3:]
    _, num_read = codecs.utf_8_decode(end, "replace")
    return end[num_read:]
