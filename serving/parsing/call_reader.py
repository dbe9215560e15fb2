"""Reads one tool call, `{"name": …, "arguments": {…}}`, while its text is generated."""

from __future__ import annotations

import json
from collections.abc import Collection
from itertools import groupby
from typing import Literal

from serving.parsing.pieces import CallArguments, CallStart, Piece

_BLANK = " \t\r\n"
_ARGUMENTS = ("arguments", "parameters")
"""The keys of Hermes and Mistral, and of Llama."""
State = Literal["reading", "done", "failed"]


class CallReader:
    """An incremental JSON reader that returns the arguments while they are still being written.

    The name is returned once it is known to be a tool's. A JSON object without such a name is not a call: the state
    becomes `failed`, and `text` is all that was read, to be treated as content. Once the name was returned, arguments
    are returned unchanged, up to the end of the object or of the answer.

    Args:
        index: of the call within the answer.
        names: of the tools.
    """

    def __init__(self, index: int, names: Collection[str]) -> None:
        self.state: State = "reading"
        self._index, self._names = index, names
        self._read: list[str] = []
        self._name: str | None = None
        self._early: list[str] = []
        """Arguments that preceded the name."""
        self._has_arguments = self._is_passing_on = False
        self._key: str | None = None
        """The key of the value being read; None before a key."""
        self._token: list[str] = []
        """The characters of the key or value so far; of arguments that are returned at once, only the first."""
        self._depth = 0
        """Depth of braces and brackets: 1 within the object, more within a value."""
        self._in_string = self._is_escaped = False

    @property
    def is_call(self) -> bool:
        """Whether the name was returned."""
        return self._name in self._names

    @property
    def text(self) -> str:
        """All that was read, while it is not known to be a call."""
        return "".join(self._read)

    def read(self, text: str) -> tuple[list[Piece], int]:
        """The pieces of more text, and how much of it was read: not all of it once the state is not `reading`."""
        pieces: list[Piece] = []
        for at, letter in enumerate(text):
            if not self.is_call:
                self._read.append(letter)
            self._take(letter, pieces)
            if self.state != "reading":
                return _merged(pieces), at + 1
        return _merged(pieces), len(text)

    def _take(self, letter: str, pieces: list[Piece]) -> None:
        if self._in_string:
            self._end_string(letter)
        elif self._depth == 0:
            self._depth = int(letter == "{")
            if letter not in "{" + _BLANK:
                self._fail()
            return
        elif self._depth == 1 and letter in ",}:":
            self._close(letter, pieces)
            return
        elif letter in _BLANK and self._depth == 1:
            return
        elif letter == "]" and self._depth == 1 or self._is_after_value():
            self._fail()
            return
        else:
            self._in_string = letter == '"'
            self._depth += (letter in "{[") - (letter in "}]")
        starts_object = letter == "{" and not self._token
        if self._is_passing_on or (self._key in _ARGUMENTS and starts_object and not self._has_arguments):
            self._is_passing_on = True
            self._token = ["{"]
            self._pass_on(letter, pieces)
        else:
            self._token.append(letter)

    def _end_string(self, letter: str) -> None:
        if self._is_escaped:
            self._is_escaped = False
        elif letter == "\\":
            self._is_escaped = True
        elif letter == '"':
            self._in_string = False

    def _is_after_value(self) -> bool:
        """Whether a string, object or list has ended, so that only a comma, a colon or the end may follow."""
        return self._depth == 1 and bool(self._token) and self._token[0] in '"{['

    def _close(self, letter: str, pieces: list[Piece]) -> None:
        """End a key (`letter` is a colon) or a value, and possibly the object."""
        token, self._token = "".join(self._token), []
        if letter == ":":
            self._key = _string(token) if self._key is None else None
            if self._key is None:
                self._fail()
            return
        if self._key == "name" and self._name is None:
            self._name = _string(token)
            if not self.is_call:
                self._fail()
                return
            pieces.append(CallStart(self._index, str(self._name)))
            if self._early:
                pieces.append(CallArguments(self._index, "".join(self._early)))
        elif self._key in _ARGUMENTS and not self._has_arguments and token not in ("", "null"):
            # Some models write the arguments as a JSON string that contains JSON.
            self._pass_on(_string(token) or token, pieces)
        self._key, self._is_passing_on = None, False
        if letter == "}":
            if not self.is_call:
                self._fail()
                return
            if not self._has_arguments:
                self._pass_on("{}", pieces)
            self.state = "done"

    def _pass_on(self, text: str, pieces: list[Piece]) -> None:
        self._has_arguments = True
        if self.is_call:
            pieces.append(CallArguments(self._index, text))
        else:
            self._early.append(text)

    def _fail(self) -> None:
        self.state = "done" if self.is_call else "failed"


def _merged(pieces: list[Piece]) -> list[Piece]:
    """Merge arguments, which were read character by character, into one piece."""
    merged: list[Piece] = []
    for is_arguments, group in groupby(pieces, lambda piece: isinstance(piece, CallArguments)):
        together = list(group)
        if is_arguments:
            parts = [piece for piece in together if isinstance(piece, CallArguments)]
            merged.append(CallArguments(parts[0].index, "".join(part.json for part in parts)))
        else:
            merged += together
    return merged


def _string(token: str) -> str | None:
    try:
        value = json.loads(token)
    except ValueError:
        return None
    return value if isinstance(value, str) else None
