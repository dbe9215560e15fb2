"""Parsers for the published formats in which models write tool calls.

`hermes` (Hermes, Qwen, SmolLM): `<tool_call>{"name": …, "arguments": {…}}</tool_call>`, any number, amid content;
`llama3_json` (Llama 3.1 and later): the answer is `{"name": …, "parameters": {…}}`, or several with `;` between them;
`mistral` (Mistral 7B v0.3 to Mistral Small 2409): the answer is `[TOOL_CALLS][{"name": …, "arguments": {…}}, …]`.
"""

from __future__ import annotations

from collections.abc import Collection

from osd.text.chat_template import CallFormat
from serving.parsing.call_reader import CallReader
from serving.parsing.pieces import AnswerParser, Content, Piece


def held_back(text: str, mark: str) -> int:
    """Length of the longest end of `text` that may be the beginning of `mark`."""
    return next((size for size in range(min(len(mark) - 1, len(text)), 0, -1) if text.endswith(mark[:size])), 0)


class CallsAndContent:
    """What the formats share: numbering calls, and dropping whitespace around them from the content."""

    def __init__(self, names: Collection[str], max_calls: int | None) -> None:
        self._names, self._max_calls = names, max_calls
        self._num_calls = 0
        self._blanks = ""
        """Whitespace held back; it is content if other text follows."""
        self._has_content = False

    def _new_reader(self) -> CallReader:
        return CallReader(self._num_calls, self._names)

    def _kept(self, pieces: list[Piece]) -> list[Piece]:
        return pieces if self._max_calls is None or self._num_calls < self._max_calls else []

    def _content(self, text: str) -> list[Piece]:
        body = text.rstrip()
        if not body:
            self._blanks += text
            return []
        whole, self._blanks = self._blanks + body, text[len(body) :]
        if self._num_calls and not self._has_content:
            whole = whole.lstrip()
        self._has_content = True
        return [Content(whole)]

    def _rest(self) -> list[Piece]:
        blanks, self._blanks = self._blanks, ""
        return [Content(blanks)] if blanks and not self._num_calls else []


class HermesCalls(CallsAndContent):
    """`<tool_call>…</tool_call>` within content.

    Args:
        names: of the tools; a call of anything else is content.
        max_calls: further calls are dropped.
    """

    _OPEN, _CLOSE = "<tool_call>", "</tool_call>"

    def __init__(self, names: Collection[str], max_calls: int | None = None) -> None:
        super().__init__(names, max_calls)
        self._pending = ""
        self._reader: CallReader | None = None
        self._is_closing = False

    def read(self, text: str) -> list[Piece]:
        """See `AnswerParser`."""
        self._pending += text
        pieces: list[Piece] = []
        while self._pending:
            before = (self._pending, self._is_closing)
            if self._reader is not None:
                pieces += self._read_call(self._reader)
            elif self._is_closing:
                self._read_close()
            else:
                pieces += self._read_text()
            if (self._pending, self._is_closing) == before:
                break
        return pieces

    def _read_text(self) -> list[Piece]:
        text, mark, after = self._pending.partition(self._OPEN)
        if mark:
            self._pending, self._reader = after, self._new_reader()
            return self._content(text)
        held = held_back(text, self._OPEN)
        self._pending = text[len(text) - held :]
        return self._content(text[: len(text) - held])

    def _read_call(self, reader: CallReader) -> list[Piece]:
        pieces, num_read = reader.read(self._pending)
        self._pending = self._pending[num_read:]
        pieces = self._kept(pieces)
        if reader.state == "done":
            self._reader, self._is_closing = None, True
            self._num_calls += 1
        elif reader.state == "failed":
            self._reader = None
            pieces += self._content(self._OPEN + reader.text)
        return pieces

    def _read_close(self) -> None:
        """Skip the closing mark, which some models omit."""
        seen = self._pending.lstrip()
        if len(seen) < len(self._CLOSE) and self._CLOSE.startswith(seen):
            return  # undecided until more text comes
        self._is_closing = False
        if seen.startswith(self._CLOSE):
            self._pending = seen.removeprefix(self._CLOSE)

    def end(self) -> list[Piece]:
        """See `AnswerParser`."""
        pieces: list[Piece] = []
        if self._reader is not None and self._reader.is_call:
            self._num_calls += 1
        elif self._reader is not None:
            pieces += self._content(self._OPEN + self._reader.text)
        elif not self._is_closing:
            pieces += self._content(self._pending)
        self._pending, self._reader = "", None
        return pieces + self._rest()


class LeadingCalls(CallsAndContent):
    """An answer that consists of calls only, or of content only.

    Args:
        names: of the tools; an answer that begins with anything else is content.
        max_calls: further calls are dropped.
        mark: optional text before the calls; often a special token, which has no text.
        bracket: opens the list of calls; empty if they are not a list.
    """

    def __init__(self, names: Collection[str], max_calls: int | None, *, mark: str, bracket: str) -> None:
        super().__init__(names, max_calls)
        self._opening = [mark, bracket] if bracket else [mark]
        self._head = ""
        """Text read so far that may be the beginning of a call."""
        self._reader: CallReader | None = None
        self._is_content = False

    def read(self, text: str) -> list[Piece]:
        """See `AnswerParser`."""
        pieces: list[Piece] = []
        while text:
            if self._is_content:
                return pieces + self._content(text)
            reader = self._reader
            if reader is None:
                self._reader, text = self._seek(text)
                continue
            new, num_read = reader.read(text)
            pieces += self._kept(new)
            text = text[num_read:]
            if reader.state == "done":
                self._num_calls += 1
                self._head, self._reader = "", None
            elif reader.state == "failed":
                text, self._head, self._reader = self._head + reader.text + text, "", None
                self._is_content = True
        return pieces

    def _seek(self, text: str) -> tuple[CallReader | None, str]:
        """Skip what precedes a call; returns the call's reader, if there is a call, and the text left to read."""
        self._head += text
        seen = self._head.lstrip(" \t\r\n,;]" if self._num_calls else None)
        if not self._num_calls:
            for mark in self._opening:
                if len(seen) < len(mark) and mark.startswith(seen):
                    return None, ""  # undecided until more text comes
                seen = seen.removeprefix(mark).lstrip()
        if not seen:
            return None, ""
        before = "" if self._num_calls else self._head[: len(self._head) - len(seen)]
        is_open = self._num_calls or len(self._opening) == 1 or "[" in before
        if seen.startswith("{") and is_open:
            self._head = before
            return self._new_reader(), seen
        self._head, self._is_content = "", True
        return None, before + seen

    def end(self) -> list[Piece]:
        """See `AnswerParser`."""
        pieces: list[Piece] = []
        if self._reader is not None and self._reader.is_call:
            self._num_calls += 1
        elif not self._num_calls:
            pieces = self._content(self._head + (self._reader.text if self._reader else ""))
        self._head, self._reader = "", None
        return pieces + self._rest()


def call_parser(call_format: CallFormat, names: Collection[str], max_calls: int | None = None) -> AnswerParser:
    """A new parser of one answer."""
    match call_format:
        case "hermes":
            return HermesCalls(names, max_calls)
        case "llama3_json":
            return LeadingCalls(names, max_calls, mark="<|python_tag|>", bracket="")
        case "mistral":
            return LeadingCalls(names, max_calls, mark="[TOOL_CALLS]", bracket="[")
