"""A query is read where most of it is known, and nothing that others may still need is lost for it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from osd.engine.rows.prefix_cache import Place, PrefixCache

_SYSTEM = tuple(range(100, 120))
_FIRST = (*_SYSTEM, *range(200, 230))
_SECOND = (*_SYSTEM, *range(300, 340))


def _cache(*held: tuple[int, ...], num_rows: int = 4) -> PrefixCache:
    """Rows that hold these tokens, used one after another."""
    cache = PrefixCache(num_rows)
    for row, ids in enumerate(held):
        cache.hold(row, ids)
    return cache


def test_a_first_query_takes_the_first_row() -> None:
    assert _cache().place(_FIRST, 0) == Place(0, 0, 0)


def test_the_next_turn_of_a_conversation_takes_its_row_over() -> None:
    cache = _cache(_FIRST, _SECOND)
    assert cache.place((*_FIRST, 7, 8, 9), 0) == Place(0, 0, len(_FIRST))
    assert cache.place((*_SECOND, 7, 8, 9), 0) == Place(1, 1, len(_SECOND))


def test_an_answer_that_is_wanted_again_is_read_from_the_prompts_last_token_on() -> None:
    """The logits after the last token are needed, whoever has read it."""
    assert _cache(_FIRST).place(_FIRST, 0) == Place(0, 0, len(_FIRST) - 1)
    assert _cache(_FIRST).place(_FIRST[:30], 0) == Place(0, 0, 29)


def test_another_query_with_the_same_system_prompt_copies_that_and_leaves_the_rest() -> None:
    cache = _cache(_FIRST, _SECOND)
    assert cache.place((*_SYSTEM, 1, 2, 3), 0) == Place(2, 0, len(_SYSTEM))


def test_a_query_that_is_being_answered_is_copied_from() -> None:
    """As of several choices for one prompt."""
    assert _cache(_FIRST).place(_FIRST, 1) == Place(1, 0, len(_FIRST) - 1)


def test_what_was_used_last_is_kept_longest() -> None:
    cache = _cache(_FIRST, _SECOND, (1,) * 30, (2,) * 30)
    assert cache.place((3,) * 30, 0).row == 0
    assert cache.place((*_SECOND[:25], 1), 2) == Place(2, 1, 25)  # which counts as a use of row 1
    for row in (0, 2, 3):
        cache.hold(row, (row,) * 30)
    assert cache.place((9,) * 30, 0).row == 1


def test_the_row_that_goes_next_is_begun_with_where_it_is_no_worse_than_others() -> None:
    """No copy is made where all share a system prompt, and no more."""
    cache = _cache(_FIRST, _SECOND, (*_SYSTEM, 5), (*_SYSTEM, 6))
    assert cache.place((*_SYSTEM, 1, 2, 3), 0) == Place(0, 0, len(_SYSTEM))


def test_a_few_tokens_in_common_are_nothing() -> None:
    assert _cache(_FIRST).place((*_FIRST[:7], 1, 2), 0) == Place(1, 1, 0)


def test_rows_that_change_places_take_what_is_known_of_them_along() -> None:
    cache = _cache(_FIRST, _SECOND)
    cache.swap(0, 3)
    assert (cache.num_tokens(0), cache.num_tokens(3)) == (0, len(_FIRST))
    assert cache.place((*_FIRST, 7), 2) == Place(3, 3, len(_FIRST))


def test_after_a_failure_nothing_is_known() -> None:
    cache = _cache(_FIRST, _SECOND)
    cache.clear()
    assert cache.place((*_FIRST, 7), 0).num_tokens == 0
    assert cache.num_tokens(0) == 0


_ids = st.lists(st.integers(0, 1), min_size=1, max_size=40).map(tuple)


@given(held=st.lists(_ids, min_size=1, max_size=5), ids=_ids, data=st.data())
def test_what_is_said_to_be_known_is(held: list[tuple[int, ...]], ids: tuple[int, ...], data: st.DataObject) -> None:
    first_free = data.draw(st.integers(0, len(held) - 1))
    place = _cache(*held, num_rows=len(held)).place(ids, first_free)
    assert first_free <= place.row < len(held)
    assert place.num_tokens < len(ids)
    assert held[place.source][: place.num_tokens] == ids[: place.num_tokens]
