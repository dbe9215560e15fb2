"""Stop strings: the growing text of one answer, cut before the first stop string that appears in it."""

from __future__ import annotations

from collections.abc import Sequence

from osd.text.codec import TextCodec


class AnswerText:
    """Hands out whole characters, and holds back a tail that may turn out to be the beginning of a stop string.

    Args:
        codec: the target's tokenizer.
        stop: the stop strings; the text ends before the first that appears.
        prompt_ids: the prompt, whose text the answer continues.
        include_stop: end the text after the stop string, not before it.
        skip_special_tokens: leave special tokens out of the text; False writes them as they are spelt.
    """

    __slots__ = (
        "_emitted_chars",
        "_include_stop",
        "_longest_stop_chars",
        "_stop",
        "_stream",
        "_text",
        "_unread",
        "matched",
    )

    def __init__(
        self,
        codec: TextCodec,
        stop: Sequence[str] = (),
        prompt_ids: Sequence[int] = (),
        *,
        include_stop: bool = False,
        skip_special_tokens: bool = True,
    ) -> None:
        self._stream = codec.stream(prompt_ids, skip_special_tokens=skip_special_tokens)
        self._include_stop = include_stop
        self._stop = tuple(stop)
        self._longest_stop_chars = max(map(len, stop), default=0)
        self._unread: list[int] = []
        self._text = ""
        self._emitted_chars = 0
        self.matched: str | None = None
        """The stop string that ended the text."""

    def push(self, token_id: int, *, may_stop: bool = True) -> bool:
        """Add a token; True when a stop string is now complete, and the text ends before it.

        Args:
            token_id: the token.
            may_stop: False passes over stop strings that it completes.
        """
        self._unread.append(token_id)
        if self._stop:  # without stop strings, decoding waits until the text is taken
            self._read_on(may_stop=may_stop)
        return self.matched is not None

    def _read_on(self, *, may_stop: bool = True) -> None:
        self._append(self._stream.read(self._unread), may_stop=may_stop)
        self._unread.clear()

    def _append(self, text: str, *, may_stop: bool = True) -> None:
        self._text += text
        if not self._stop or not text or not may_stop:
            return
        searched_from = max(0, len(self._text) - len(text) - self._longest_stop_chars)
        found = [(at, stop) for stop in self._stop if (at := self._text.find(stop, searched_from)) >= 0]
        if found:
            at, stop = min(found)
            self._text = self._text[: at + len(stop) if self._include_stop else at]
            self.matched = stop

    def take(self, *, final: bool = False) -> str:
        """Text not yet handed out; `final` includes the tail that was held back."""
        if self._unread:
            self._read_on()
        if final and self.matched is None:
            self._append(self._stream.rest())
        end = len(self._text)
        if self._stop and not final and self.matched is None:
            end -= self._held_back()
        start, self._emitted_chars = self._emitted_chars, max(end, self._emitted_chars)
        return self._text[start:end]

    def skip(self, num_chars: int) -> None:
        """Treat this many characters as handed out already (a resumed query)."""
        self._emitted_chars = num_chars

    def _held_back(self) -> int:
        """Length of the longest tail that may be the beginning of a stop string."""
        text, longest = self._text, 0
        for stop in self._stop:
            at = text.find(stop[0], max(len(text) - len(stop) + 1, 0))
            while 0 <= at < len(text) - longest:
                if stop.startswith(text[at:]):
                    longest = len(text) - at
                    break
                at = text.find(stop[0], at + 1)
        return longest
