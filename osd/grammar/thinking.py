"""Limits how long an answer reasons: beyond the limit, only the mark that ends reasoning is allowed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from osd.grammar.row_grammar import num_words
from osd.ports.constraint import RowConstraint
from osd.records.asked.limits import ThinkingLimit

_ALL = np.uint32(0xFFFFFFFF)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an answer is."""

    is_thinking: bool
    is_over: bool = False
    """Reasoning has ended: the rest of the answer is free."""
    num_tokens: int = 0
    """Number of tokens of the reasoning so far."""
    num_forced: int = 0
    """Tokens of the end mark that were written beyond the limit."""
    tail: tuple[int, ...] = ()
    """The last tokens, as many as the longer mark has."""


class ThinkingConstraint:
    """See `osd.ports.constraint.RowConstraint`.

    Args:
        limit: on the reasoning.
        vocab_tokens: V.
        inner: what else constrains the answer; None: nothing.
    """

    def __init__(self, limit: ThinkingLimit, vocab_tokens: int, inner: RowConstraint | None) -> None:
        self._limit, self._num_words, self._inner = limit, num_words(vocab_tokens), inner
        self._longest = max(len(limit.begin_ids), len(limit.end_ids))
        self._place = _Place(is_thinking=limit.is_open)

    @property
    def error(self) -> str | None:
        """See `RowConstraint`."""
        return None if self._inner is None else self._inner.error

    def allowed(self, proposed: Sequence[int]) -> NDArray[np.uint32]:
        """See `RowConstraint`."""
        if self._inner is None:
            bits_QW = np.full((len(proposed) + 1, self._num_words), _ALL)
        else:
            bits_QW = self._inner.allowed(proposed).copy()
        place = self._place
        for position, bits_W in enumerate(bits_QW):
            if (token := self._forced(place)) is not None:
                only_W = np.zeros_like(bits_W)
                only_W[token >> 5] = np.uint32(1) << np.uint32(token & 31)
                if (only_W & bits_W).any():  # else the form of the answer has no reasoning here
                    bits_W[:] = only_W
            if position < len(proposed):
                place = self._after(place, proposed[position])
        return bits_QW

    def advance(self, tokens: Sequence[int]) -> None:
        """See `RowConstraint`."""
        for token in tokens:
            self._place = self._after(self._place, token)
        if self._inner is not None:
            self._inner.advance(tokens)

    def expected(self) -> Sequence[int]:
        """See `RowConstraint`: the rest of the end mark, once it is due."""
        if self._forced(self._place) is not None:
            return self._limit.end_ids[self._place.num_forced :]
        return () if self._inner is None else self._inner.expected()

    def _forced(self, place: _Place) -> int | None:
        """The only token that may follow, if the reasoning is as long as it may be."""
        limit = self._limit
        if place.is_over or not place.is_thinking or place.num_tokens < limit.max_tokens:
            return None
        return limit.end_ids[place.num_forced]

    def _after(self, place: _Place, token: int) -> _Place:
        if place.is_over:
            return place
        limit, forced = self._limit, self._forced(place)
        tail = (*place.tail, token)[-self._longest :]
        if not place.is_thinking:
            return replace(place, is_thinking=_ends_with(tail, limit.begin_ids), tail=tail)
        num_forced = place.num_forced + 1 if token == forced else 0
        is_over = num_forced == len(limit.end_ids) or _ends_with(tail, limit.end_ids)
        return replace(
            place, is_over=is_over, num_tokens=place.num_tokens + (forced is None), num_forced=num_forced, tail=tail
        )


def _ends_with(tail: Sequence[int], mark: Sequence[int]) -> bool:
    return tuple(tail[-len(mark) :]) == tuple(mark)
