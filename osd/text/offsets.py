"""Where in an answer's text each of its tokens begins."""

from __future__ import annotations

import codecs


class TextOffsets:
    """Counts characters, token by token. A token that is part of a character begins where that character does.

    Args:
        unfinished: the bytes of an unfinished character before the first token.
        drop_space: a space at the very beginning is no part of the text.
    """

    __slots__ = ("_drop_space", "_num_chars", "_unfinished")

    def __init__(self, *, unfinished: bytes = b"", drop_space: bool = False) -> None:
        self._num_chars, self._unfinished, self._drop_space = 0, unfinished, drop_space

    def next(self, data: bytes) -> int:
        """Take in a token, given as its bytes; characters of the text before the one in which it begins."""
        if self._drop_space and data:
            data, self._drop_space = data.removeprefix(b" "), False
        if not data:
            return self._num_chars
        self._add(data[:1])
        # The first byte is in the unfinished character, or in the last of those that it finished.
        offset = self._num_chars if self._unfinished else self._num_chars - 1
        self._add(data[1:])
        return offset

    def _add(self, data: bytes) -> None:
        come = self._unfinished + data
        text, num_read = codecs.utf_8_decode(come, "replace")
        self._num_chars += len(text)
        self._unfinished = come[num_read:]
