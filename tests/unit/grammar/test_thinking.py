"""A limit on reasoning: the mark that ends it is the only thing allowed beyond, token by token, and never elsewhere."""

from __future__ import annotations

import numpy as np
import pytest

from osd.grammar.thinking import ThinkingConstraint
from osd.ports.constraint import RowConstraint
from osd.records.asked.limits import ThinkingLimit
from tests.kit.constraints import EvenTokens

_VOCAB = 40
_BEGIN, _END = (1, 2), (4, 6)


def _constraint(most: int, *, is_open: bool = False, inner: RowConstraint | None = None) -> ThinkingConstraint:
    limit = ThinkingLimit(max_tokens=most, begin_ids=_BEGIN, end_ids=_END, is_open=is_open)
    return ThinkingConstraint(limit, _VOCAB, inner)


def _allowed(constraint: ThinkingConstraint, *proposed: int) -> list[set[int] | None]:
    """The tokens allowed at each position; None: all."""
    bits_QW = constraint.allowed(proposed)
    unpacked = [np.unpackbits(bits_W.view(np.uint8), count=_VOCAB, bitorder="little") for bits_W in bits_QW]
    sets: list[set[int]] = [set(np.flatnonzero(one).tolist()) for one in unpacked]
    return [None if len(one) == _VOCAB else one for one in sets]


def test_the_end_is_written_once_the_limit_is_reached() -> None:
    constraint = _constraint(3, is_open=True)
    assert _allowed(constraint, 9, 9, 9, 4, 6, 9) == [None, None, None, {4}, {6}, None, None]
    for token in (9, 9, 9, 4):
        constraint.advance([token])
    assert _allowed(constraint) == [{6}]
    constraint.advance([6])
    assert _allowed(constraint, 1, 2, 9, 9, 9, 9) == [None] * 7  # reasoning is over for good


def test_what_is_proposed_is_forgotten() -> None:
    constraint = _constraint(2, is_open=True)
    assert _allowed(constraint, 9, 9) == [None, None, {4}]
    assert _allowed(constraint, 9) == [None, None]


def test_it_counts_from_the_mark_that_begins_reasoning() -> None:
    constraint = _constraint(1)
    assert _allowed(constraint, 1, 9, 1, 2, 9, 4, 6) == [None, None, None, None, None, {4}, {6}, None]
    none_at_all = _constraint(0)
    assert _allowed(none_at_all, 1, 2, 4, 6) == [None, None, {4}, {6}, None]


def test_reasoning_may_end_by_itself() -> None:
    constraint = _constraint(3, is_open=True)
    constraint.advance([9, 4, 6])
    assert _allowed(constraint, 9, 9, 9) == [None] * 4


def test_an_end_mark_that_was_broken_off_is_begun_again() -> None:
    """As when the limit is reached within a mark that the model writes by itself."""
    constraint = _constraint(2, is_open=True)
    constraint.advance([9, 4])
    assert _allowed(constraint, 4, 6) == [{4}, {6}, None]


def test_the_rest_is_constrained_as_it_is_without_a_limit() -> None:
    constraint = _constraint(1, is_open=True, inner=EvenTokens(_VOCAB))
    even = set(range(0, _VOCAB, 2))
    assert _allowed(constraint, 8, 4, 6) == [even, {4}, {6}, even]
    assert constraint.error is None


@pytest.mark.parametrize("end", [(5,), (5, 7)])
def test_a_form_that_has_no_such_mark_is_kept(end: tuple[int, ...]) -> None:
    """Some token must always be allowed."""
    limit = ThinkingLimit(max_tokens=0, begin_ids=_BEGIN, end_ids=end, is_open=True)
    constraint = ThinkingConstraint(limit, _VOCAB, EvenTokens(_VOCAB))
    assert _allowed(constraint, 8) == [set(range(0, _VOCAB, 2))] * 2
