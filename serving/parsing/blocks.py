"""An answer as a sequence of blocks, each of one kind, as in the Responses and the Messages API."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from serving.parsing.pieces import CallArguments, CallStart, Content, Piece, Reasoning

BlockKind = Literal["content", "reasoning", "call"]


@dataclass(slots=True)
class Block:
    """Text, reasoning, or one tool call, whose arguments are in `text`."""

    index: int
    """Index within the answer, from 0."""
    kind: BlockKind
    name: str = ""
    """Name of the tool, for a call."""
    parts: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """Its text so far."""
        return "".join(self.parts)


@dataclass(frozen=True, slots=True)
class Change:
    """A block begins, grows, or ends."""

    kind: Literal["begin", "grow", "end"]
    block: Block
    text: str = ""


class Blocks:
    """The blocks of one answer, in the model's order."""

    def __init__(self) -> None:
        self.done: list[Block] = []
        self._open: Block | None = None

    def take(self, pieces: Iterable[Piece]) -> list[Change]:
        """Add pieces; returns the changes to blocks."""
        changes: list[Change] = []
        for piece in pieces:
            match piece:
                case Content(text):
                    changes += self._grow("content", text)
                case Reasoning(text):
                    changes += self._grow("reasoning", text)
                case CallStart(_, name):
                    changes += [*self.end(), self._begin("call", name)]
                case CallArguments(_, json):
                    changes += self._grow("call", json)
        return changes

    def end(self) -> list[Change]:
        """End the open block, if any."""
        block, self._open = self._open, None
        if block is None:
            return []
        self.done.append(block)
        return [Change("end", block)]

    def _begin(self, kind: BlockKind, name: str = "") -> Change:
        self._open = Block(len(self.done), kind, name)
        return Change("begin", self._open)

    def _grow(self, kind: BlockKind, text: str) -> list[Change]:
        changes: list[Change] = []
        if self._open is None or self._open.kind != kind:
            changes = [*self.end(), self._begin(kind)]
        assert self._open is not None
        self._open.parts.append(text)
        return [*changes, Change("grow", self._open, text)]
