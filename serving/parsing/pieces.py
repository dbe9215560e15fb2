"""The pieces that an answer consists of, and the Protocol of parsers that split its text into them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Content:
    """Text for the user."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """Text of the model's reasoning."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """The beginning of a tool call; its arguments follow."""

    index: int
    """Index of the call within the answer, from 0."""
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """More of a call's arguments, as the JSON that the model wrote."""

    index: int
    json: str


Piece = Content | Reasoning | CallStart | CallArguments


class AnswerParser(Protocol):
    """Splits one answer's text. The merged pieces do not depend on how the text is divided into calls of `read`."""

    def read(self, text: str) -> list[Piece]:
        """The pieces that this text completes; a possible beginning of a mark is held back."""
        ...

    def end(self) -> list[Piece]:
        """The pieces that were held back, at the end of the answer."""
        ...


class PlainText:
    """The parser of an answer that is all content."""

    def read(self, text: str) -> list[Piece]:
        """See `AnswerParser`."""
        return [Content(text)] if text else []

    def end(self) -> list[Piece]:
        """See `AnswerParser`."""
        return []


@dataclass(slots=True)
class Call:
    """A complete tool call."""

    name: str
    arguments: str = ""
    """JSON, unless the answer was cut off within it."""


@dataclass(slots=True)
class Parts:
    """All pieces of an answer, merged."""

    content: str = ""
    reasoning: str = ""
    calls: list[Call] = field(default_factory=list)

    def add(self, pieces: Iterable[Piece]) -> None:
        """Add pieces."""
        for piece in pieces:
            match piece:
                case Content(text):
                    self.content += text
                case Reasoning(text):
                    self.reasoning += text
                case CallStart(_, name):
                    self.calls.append(Call(name))
                case CallArguments(index, json):
                    self.calls[index].arguments += json


def parts_of(parser: AnswerParser, text: str) -> Parts:
    """Split a whole answer by a new parser."""
    parts = Parts()
    parts.add(parser.read(text))
    parts.add(parser.end())
    return parts
