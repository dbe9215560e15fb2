"""The suffix index against a search of all positions, on texts of few different tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osd.drafters.suffix.index import NOTHING, SuffixIndex

MAX_MATCH = 5
documents = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=30), max_size=4)
contexts = st.lists(st.integers(0, 3), min_size=1, max_size=12)


def index_of(texts: Sequence[Sequence[int]], half_life_tokens: float = float("inf")) -> SuffixIndex:
    index = SuffixIndex(MAX_MATCH, half_life_tokens)
    for text in texts:
        index.begin_document()
        index.extend(text)
    return index


def continuations(texts: Sequence[Sequence[int]], context: Sequence[int]) -> tuple[int, list[list[int]]]:
    """By looking at every position: the longest match, and the rest of each document that follows one."""
    for length in range(min(MAX_MATCH, len(context)), 0, -1):
        wanted = list(context[-length:])
        found = [
            list(text[end:])
            for text in texts
            for end in range(length, len(text))
            if list(text[end - length : end]) == wanted
        ]
        if found:
            return length, found
    return 0, []


@given(documents, contexts)
def test_the_longest_match_is_found_wherever_it_is(texts: list[list[int]], context: list[int]) -> None:
    index = index_of(texts)
    match_tokens, places = index.find(context)
    expected, found = continuations(texts, context)
    assert match_tokens == expected
    tokens = [token for number, text in enumerate(texts) for token in (-1 - number, *text)]
    followers = sorted(tokens[place] for place in places)
    assert len(places) == min(len(found), len(places)) and len(places) >= min(len(found), 32)
    if len(found) <= 64:
        assert followers == sorted(rest[0] for rest in found)


@given(documents, contexts, st.integers(1, 6))
def test_each_proposed_token_has_most_votes_of_those_that_agree_so_far(
    texts: list[list[int]], context: list[int], max_tokens: int
) -> None:
    proposal = index_of(texts).propose(context, max_tokens)
    match_tokens, alive = continuations(texts, context)
    assert proposal.match_tokens == match_tokens
    assert len(proposal.token_ids) <= max_tokens
    probability, score = 1.0, 0.0
    for number, token in enumerate(proposal.token_ids):
        votes = Counter(rest[0] for rest in alive if rest)
        assert votes[token] == max(votes.values())
        probability *= votes[token] / (votes.total() + 3 / (match_tokens + number))
        score += probability
        alive = [rest[1:] for rest in alive if rest and rest[0] == token]
    assert proposal.score == pytest.approx(score)


@given(documents, st.integers(0, 60), contexts)
def test_what_was_forgotten_might_never_have_been(texts: list[list[int]], num_tokens: int, context: list[int]) -> None:
    index = index_of(texts)
    index.drop_oldest(num_tokens)
    kept, num_gone = list(texts), 0
    while kept and num_gone < num_tokens:
        num_gone += len(kept.pop(0)) + 1
    assert len(index) == sum(len(text) + 1 for text in kept)
    assert index.find(context)[0] == continuations(kept, context)[0]
    assert index.propose(context, 4) == index_of(kept).propose(context, 4)
    index.begin_document()  # and it goes on growing
    index.extend(context)
    assert index.propose(context, 4) == index_of([*kept, context]).propose(context, 4)


def test_a_match_does_not_reach_into_another_document() -> None:
    index = index_of([[1, 2], [3, 4]])
    assert index.find([2, 3])[0] == 1, "2 3 stands nowhere: a document ends between them"
    assert index.propose([1, 2], 4) == NOTHING, "nothing follows the end of a document"


def test_a_new_occurrence_counts_more_than_two_old_ones() -> None:
    texts = [[1, 2], [1, 2], [9] * 40, [1, 3]]
    assert index_of(texts).propose([1], 1).token_ids == (2,)
    assert index_of(texts, half_life_tokens=10.0).propose([1], 1).token_ids == (3,)


def test_of_equal_votes_the_newest_wins() -> None:
    assert index_of([[1, 2], [1, 3]]).propose([1], 1).token_ids == (3,)


def test_long_matches_and_many_votes_are_trusted_more() -> None:
    once_short = index_of([[1, 2, 3]]).propose([2], 1)
    once_long = index_of([[1, 2, 3]]).propose([1, 2], 1)
    thrice = index_of([[1, 2, 3]] * 3).propose([1, 2], 1)
    assert once_short.score < once_long.score < thrice.score < 1.0


def test_an_unlikely_end_is_left_out() -> None:
    texts = [[1, 2, token] for token in range(3, 33)]
    assert index_of(texts).propose([1], 4).token_ids == (2,), "each of thirty has a chance below a tenth"


def test_a_text_of_one_token_costs_no_more_than_any() -> None:
    index = index_of([[7] * 2000])
    match_tokens, places = index.find([7] * 40)
    assert match_tokens == MAX_MATCH
    assert len(places) <= 64
    assert index.propose([7] * 40, 4).token_ids == (7, 7, 7, 7)
