"""An answer that repeats itself is noticed at the first token at which it does."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from osd.records.asked.limits import RepetitionLimit
from osd.text.repeats import Repeats


def _repeats(tokens: Sequence[int], limit: RepetitionLimit) -> bool:
    """By the definition: the end consists of one pattern, so many times."""
    for size in range(limit.min_tokens, limit.max_tokens + 1):
        end = tokens[len(tokens) - size * limit.num_repeats :]
        if len(end) == size * limit.num_repeats and list(end) == list(end[:size]) * limit.num_repeats:
            return True
    return False


@given(st.lists(st.integers(0, 1), max_size=24), st.integers(1, 3), st.integers(0, 3), st.integers(2, 4))
def test_it_is_noticed_as_soon_as_it_is_true(tokens: list[int], least: int, more: int, num_repeats: int) -> None:
    limit = RepetitionLimit(min_tokens=least, max_tokens=least + more, num_repeats=num_repeats)
    repeats = Repeats(limit)
    for count, token in enumerate(tokens, start=1):
        found = repeats.push(token)
        assert found == repeats.found == _repeats(tokens[:count], limit)
        if found:
            break


def test_patterns_of_other_sizes_do_not_count() -> None:
    repeats = Repeats(RepetitionLimit(min_tokens=2, max_tokens=2, num_repeats=3))
    assert [repeats.push(token) for token in (1, 2, 3, 1, 2, 3, 1, 2, 3)] == [False] * 9
    assert [repeats.push(token) for token in (7, 8, 7, 8, 7, 8)] == [False] * 5 + [True]
