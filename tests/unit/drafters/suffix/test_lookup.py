"""What the lookup offers to each row of an engine."""

from __future__ import annotations

from osd.drafters.suffix.lookup import SuffixLookup
from osd.drafters.suffix.pool import AnswerPool
from osd.records.proposal import NO_OFFER, Offer, RowText

_PROMPT = (1, 2, 3, 4, 5)


def test_a_row_is_offered_what_followed_in_its_own_text() -> None:
    lookup, output = SuffixLookup(AnswerPool(0), 2), [9]
    rows = [RowText("a", _PROMPT, output), RowText("a", (7, 8), [7])]
    assert [offer.token_ids for offer in lookup.offers(rows, 2)] == [(), (8, 7)]
    output += [1, 2]
    assert lookup.offers(rows, 2)[0].token_ids == (3, 4)
    output += [3]
    [offer, _] = lookup.offers(rows, 1)
    assert offer.token_ids == (4,) and 0 < offer.reach[0] < 1


def test_rows_that_are_exchanged_keep_their_text() -> None:
    lookup = SuffixLookup(AnswerPool(0), 2)
    first, second = RowText("a", _PROMPT, [1]), RowText("a", (6, 7, 8), [6])
    before = lookup.offers([first, second], 2)
    lookup.swap_rows(0, 1)
    assert lookup.offers([second, first], 2) == before[::-1]
    assert [offer.token_ids for offer in before] == [(2, 3), (7, 8)]


def test_a_new_query_sees_nothing_of_the_last_one() -> None:
    lookup = SuffixLookup(AnswerPool(0), 1)
    assert lookup.offers([RowText("a", _PROMPT, [1])], 2)[0].token_ids == (2, 3)
    lookup.reset_row(0)
    assert lookup.offers([RowText("a", (9,), [1])], 2) == [NO_OFFER]


def test_a_row_that_may_propose_nothing_is_offered_nothing() -> None:
    lookup, output = SuffixLookup(AnswerPool(0), 1), [1]
    assert lookup.offers([RowText("a", _PROMPT, output)], 0) == [NO_OFFER]
    assert lookup.offers([RowText("a", _PROMPT, output)], 1)[0].token_ids == (2,)


def test_answers_of_its_domain_are_offered_as_soon_as_they_are_known() -> None:
    pool = AnswerPool(1 << 14)
    lookup = SuffixLookup(pool, 1)
    rows = [RowText("a", (50,), [51])]
    assert lookup.offers(rows, 3) == [NO_OFFER]
    pool.add("b", [50, 51, 52])
    assert lookup.offers(rows, 3) == [NO_OFFER]
    pool.add("a", [50, 51, 53])
    assert lookup.offers(rows, 3)[0].token_ids == (53,)


def test_an_offer_agrees_with_what_was_committed_up_to_the_first_other_token() -> None:
    offer = Offer((1, 2, 3), (0.9, 0.8, 0.7))
    assert [offer.num_equal(ids) for ids in ([], [1], [1, 2, 3, 4], [1, 9, 3], [9])] == [0, 1, 3, 1, 0]
