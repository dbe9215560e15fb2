"""A lookup that is not used is asked in fewer rounds, where asking takes long beside a round."""

from __future__ import annotations

from osd.speculation.lookup_turns import LookupTurns


def _asked(turns: LookupTurns, num_rounds: int, *, num_rows: int, round_ms: float, is_used: bool = False) -> list[bool]:
    """In which of so many rounds it is asked, and each time used or not."""
    asked = []
    for _ in range(num_rounds):
        asked.append(turns.is_due(num_rows, round_ms))
        turns.over(is_used=is_used and asked[-1])
    return asked


def test_few_rows_are_asked_for_in_every_round() -> None:
    assert all(_asked(LookupTurns(), 100, num_rows=1, round_ms=8.0))


def test_many_rows_for_which_nothing_is_proposed_are_asked_for_in_one_round_of_seven() -> None:
    asked = _asked(LookupTurns(), 16 + 70, num_rows=16, round_ms=17.0)
    assert all(asked[:16])
    assert asked[16:] == ([False] * 6 + [True]) * 10


def test_it_is_asked_in_every_round_again_once_it_is_used() -> None:
    turns = LookupTurns()
    _asked(turns, 100, num_rows=16, round_ms=17.0)
    while not turns.is_due(16, 17.0):
        turns.over(is_used=False)
    turns.over(is_used=True)
    assert _asked(turns, 17, num_rows=16, round_ms=17.0) == [True] * 16 + [False]


def test_a_lookup_in_use_is_asked_in_every_round() -> None:
    assert all(_asked(LookupTurns(), 100, num_rows=16, round_ms=17.0, is_used=True))
