"""Log-probabilities of a message's text, in an answer that may hold reasoning and tool calls beside it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from osd.records.query import TokenLogprob
from serving.answering.tokens import token_entry
from serving.codec import Codec
from serving.parsing.pieces import AnswerParser, CallArguments, Content, Piece, Reasoning

Told = tuple[Piece, list[dict[str, Any]]]
"""A piece of the answer, and the log-probabilities of the tokens that wrote it; none unless it is content."""


class TextLogprobs:
    """Reads an answer by a parser, and finds the tokens that each piece of content consists of.

    The answer's text is given to the parser letter by letter, so that the content it returns ends at the last letter,
    or before what the parser holds back (blanks, or the beginning of a mark). A token belongs to the first piece of
    content that holds at least one of its bytes; tokens of reasoning, calls and marks belong to none.

    Args:
        codec: knows the bytes of tokens.
        parser: splits the answer's text.
        shows_special: whether the text has special tokens, as they are spelt.
    """

    def __init__(self, codec: Codec, parser: AnswerParser, *, shows_special: bool) -> None:
        self._codec, self._parser, self._shows_special = codec, parser, shows_special
        self._tokens: list[tuple[int, dict[str, Any]]] = []
        """Where each token ends, in bytes of the answer, and its entry."""
        self._next = 0
        """The first token that no content has taken."""
        self._unplaced = ""
        """The text read after the last content."""
        self._start_bytes = 0
        """Where that text begins."""
        self._may_skip = True
        """Whether marks, reasoning or calls may come before the next content."""

    def read(self, text: str, logprobs: Sequence[TokenLogprob]) -> list[Told]:
        """The pieces that more text completes.

        Args:
            text: the answer's next text.
            logprobs: its tokens; their bytes are the text, or what is still to come of it.
        """
        for one in logprobs:
            entry = token_entry(self._codec, one.token_id, one.logprob)
            entry["top_logprobs"] = [token_entry(self._codec, *pair) for pair in one.top]
            num_bytes = len(entry["bytes"])
            if not num_bytes and self._shows_special:
                num_bytes = len(entry["token"].encode())
            before_bytes = self._tokens[-1][0] if self._tokens else 0
            self._tokens.append((before_bytes + num_bytes, entry))
        told: list[Told] = []
        for letter in text:
            self._unplaced += letter
            told += self._told(self._parser.read(letter))
        return _merged(told)

    def end(self) -> list[Told]:
        """The pieces that the parser held back."""
        return _merged(self._told(self._parser.end()))

    def _told(self, pieces: Iterable[Piece]) -> list[Told]:
        return [
            (piece, self._of_content(piece.text) if isinstance(piece, Content) else self._skip()) for piece in pieces
        ]

    def _skip(self) -> list[dict[str, Any]]:
        self._may_skip = True
        return []

    def _of_content(self, content: str) -> list[dict[str, Any]]:
        """The entries of this content's tokens. It goes on where the last one ended, unless something lies between."""
        find = self._unplaced.rfind if self._may_skip else self._unplaced.find
        at, blanks = find(content), ""
        if at < 0:  # the blanks before it are those that preceded a call
            body = content.lstrip()
            at, blanks = max(find(body), 0), content[: len(content) - len(body)]
        end = at + len(content) - len(blanks)
        while at and blanks and self._unplaced[at - 1] == blanks[-1]:
            at, blanks = at - 1, blanks[:-1]
        start_bytes = self._start_bytes + len(self._unplaced[:at].encode())
        end_bytes = self._start_bytes + len(self._unplaced[:end].encode())
        self._unplaced, self._start_bytes, self._may_skip = self._unplaced[end:], end_bytes, False
        entries = []
        while self._next < len(self._tokens):
            token_end, entry = self._tokens[self._next]
            token_start = self._tokens[self._next - 1][0] if self._next else 0
            if token_start >= end_bytes:
                break
            self._next += 1
            if token_end > start_bytes and entry["bytes"]:
                entries.append(entry)
        return entries


def _merged(told: list[Told]) -> list[Told]:
    """Join pieces of one kind that follow each other."""
    merged: list[Told] = []
    for piece, entries in told:
        joined = _joined(merged[-1][0], piece) if merged else None
        if joined is None:
            merged.append((piece, entries))
        else:
            merged[-1] = (joined, merged[-1][1] + entries)
    return merged


def _joined(one: Piece, other: Piece) -> Piece | None:
    """Both as one piece; None if they are not of one kind."""
    match one, other:
        case Content(), Content():
            return Content(one.text + other.text)
        case Reasoning(), Reasoning():
            return Reasoning(one.text + other.text)
        case CallArguments(), CallArguments() if one.index == other.index:
            return CallArguments(one.index, one.json + other.json)
    return None
