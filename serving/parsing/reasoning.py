"""Splits off reasoning, which some models write before their answer: `<think>…</think>`."""

from __future__ import annotations

from serving.parsing.pieces import AnswerParser, Piece, Reasoning
from serving.parsing.tool_calls import held_back

_OPEN, _CLOSE = "<think>", "</think>"


class ReasoningFirst:
    """Reads reasoning at the beginning of an answer, then passes the rest to another parser.

    Whitespace around the reasoning is dropped.

    Args:
        rest: splits the rest of the answer.
        is_open: whether the prompt ended with `<think>`, so that the answer begins within the reasoning.
    """

    def __init__(self, rest: AnswerParser, *, is_open: bool) -> None:
        self._rest_parser = rest
        self._phase = "inside" if is_open else "before"
        self._pending = ""
        self._has_reasoning = False

    def read(self, text: str) -> list[Piece]:
        """See `AnswerParser`."""
        if self._phase == "rest":
            return self._rest_parser.read(text)
        self._pending += text
        if self._phase == "before":
            seen = self._pending.lstrip()
            if len(seen) < len(_OPEN) and _OPEN.startswith(seen):
                return []
            if not seen.startswith(_OPEN):
                return self._go_on()
            self._pending, self._phase = seen.removeprefix(_OPEN), "inside"
        if self._phase == "inside":
            return self._read_inside()
        self._pending = self._pending.lstrip()  # after the closing mark
        return self._go_on() if self._pending else []

    def _read_inside(self) -> list[Piece]:
        inside, mark, after = self._pending.partition(_CLOSE)
        if mark:
            self._pending, self._phase = "", "after"
            pieces = self._reasoning(inside.rstrip())
            return pieces + (self.read(after) if after else [])
        held = held_back(inside, _CLOSE)
        body = inside[: len(inside) - held].rstrip()
        if not body:
            return []
        self._pending = inside[len(body) :]
        return self._reasoning(body)

    def _reasoning(self, text: str) -> list[Piece]:
        if not self._has_reasoning:
            text = text.lstrip()
        self._has_reasoning = self._has_reasoning or bool(text)
        return [Reasoning(text)] if text else []

    def _go_on(self) -> list[Piece]:
        pending, self._pending, self._phase = self._pending, "", "rest"
        return self._rest_parser.read(pending)

    def end(self) -> list[Piece]:
        """See `AnswerParser`."""
        if self._phase == "inside":
            return self._reasoning(self._pending.rstrip())
        return (self._go_on() if self._phase == "before" and self._pending else []) + self._rest_parser.end()
