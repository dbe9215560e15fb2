"""At which character of an answer's text each of its tokens begins."""

from __future__ import annotations

import codecs


class TextOffsets:
    """Counts characters token by token. A token inside a multi-byte character begins where that character begins.

    Args:
        unfinished: bytes of an unfinished character before the first token.
        drop_space: a space at the very beginning is not part of the text.
    """

    __slots__ = ("_drop_space", "_num_chars", "_unfinished")

    def __init__(self, *, unfinished: bytes = b"", drop_space: bool = False) -> None:
        self._num_chars, self._unfinished, self._drop_space = 0, unfinished, drop_space

    def next(self, data: bytes) -> int:
        """Add the next token, given as its bytes; returns the offset, in characters, at which it begins."""
        if self._drop_space and data:
            data, self._drop_space = data.removeprefix(b" "), False
        if not data:
            return self._num_chars
        self._add(data[:1])
        # The token's first byte belongs to the still unfinished character, or to the character it just completed.
        offset = self._num_chars if self._unfinished else self._num_chars - 1
        self._add(data[1:])
        return offset

    def _add(self, data: bytes) -> None:
        come = self._unfinished + data
        text, num_read = codecs.utf_8_decode(come, "replace")
        self._num_chars += len(text)
        self._unfinished = come[num_read:]
