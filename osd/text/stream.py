"""The text of tokens as they come: whole characters only, and nothing that is taken back.

The text of an answer is the text that follows its prompt, so a stream begins with the prompt's end: the first word of
an answer keeps the space before it, and bytes at the prompt's end may become a character with the answer's first.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class TextStream(Protocol):
    """The text of one answer."""

    def read(self, ids: Sequence[int]) -> str:
        """What more tokens add, but for an unfinished character at the end."""
        ...

    def rest(self) -> str:
        """What is left at the end of the answer. A character that was never finished is left out."""
        ...


class ByteStream:
    """For tokenizers whose tokens are bytes whatever stands beside them.

    Args:
        bytes_of: by token; a token that it does not name has no text.
        unfinished: the bytes of an unfinished character before the first token.
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
    """For any tokenizer: a few tokens back are decoded again, since spaces and characters may depend on neighbours.

    Args:
        decode: the text of tokens.
        decode_again: the same function with a memory, for tokens that come more than once.
        context: the last tokens before the first one.
        has_bytes: a U+FFFD at the end may be an unfinished character; False where tokens are whole characters.
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
        """From the first one that is decoded again."""
        self._num_read = len(self._ids)
        """Of them, those whose text was given out."""

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
    """The bytes of an unfinished character at the end of some UTF-8."""
    end = data[-3:]
    _, num_read = codecs.utf_8_decode(end, "replace")
    return end[num_read:]
