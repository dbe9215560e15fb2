"""What an answer consists of, and the Protocol of what splits its text."""

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
    """A call of a tool begins; its arguments follow."""

    index: int
    """Of the call within the answer, from 0."""
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """A further part of a call's arguments, as the JSON that the model wrote."""

    index: int
    json: str


Piece = Content | Reasoning | CallStart | CallArguments


class AnswerParser(Protocol):
    """Splits one answer's text. However the text is cut up, the pieces are the same when merged."""

    def read(self, text: str) -> list[Piece]:
        """The pieces that more text completes; what may be the beginning of a mark is held back."""
        ...

    def end(self) -> list[Piece]:
        """The pieces that were held back, once the answer has ended."""
        ...


class PlainText:
    """An answer that is content and nothing else."""

    def read(self, text: str) -> list[Piece]:
        """See `AnswerParser`."""
        return [Content(text)] if text else []

    def end(self) -> list[Piece]:
        """See `AnswerParser`."""
        return []


@dataclass(slots=True)
class Call:
    """A finished call of a tool."""

    name: str
    arguments: str = ""
    """JSON, unless the answer was cut off in its midst."""


@dataclass(slots=True)
class Parts:
    """Pieces, merged."""

    content: str = ""
    reasoning: str = ""
    calls: list[Call] = field(default_factory=list)

    def add(self, pieces: Iterable[Piece]) -> None:
        """Take in the next pieces."""
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
    """A whole answer's parts. The parser must be new."""
    parts = Parts()
    parts.add(parser.read(text))
    parts.add(parser.end())
    return parts
