"""Which engine a query goes to: the one that holds its prefix, or else the least loaded."""

from __future__ import annotations

import pytest

from actors.serve.prefixes import BLOCK_TOKENS, Candidate, HeldPrefixes, block_hashes, in_order, num_shared

_CHAT = tuple(range(5 * BLOCK_TOKENS))


def test_hashes_agree_as_far_as_the_tokens_do() -> None:
    other = (*_CHAT[: 3 * BLOCK_TOKENS + 7], *(9_000 + token for token in _CHAT))
    hashes, others = block_hashes(_CHAT), block_hashes(other)
    assert len(hashes) == 5
    assert hashes[:3] == others[:3] and not set(hashes[3:]) & set(others[3:])
    assert block_hashes(_CHAT[1:])[0] != hashes[0]
    assert block_hashes(_CHAT[: BLOCK_TOKENS - 1]) == ()
    assert num_shared(hashes, frozenset(others)) == 3


def test_equal_blocks_at_other_places_are_other_blocks() -> None:
    same = (7,) * (3 * BLOCK_TOKENS)
    assert len(set(block_hashes(same))) == 3


def test_the_next_turn_replaces_the_one_before() -> None:
    held = HeldPrefixes(2)
    first, second = block_hashes(_CHAT[: 2 * BLOCK_TOKENS]), block_hashes(_CHAT)
    other, third = block_hashes((1,) * BLOCK_TOKENS), block_hashes((2,) * BLOCK_TOKENS)
    held.add(other)
    held.add(first)
    held.add(second)
    held.add(())
    assert held.blocks() == {*second, *other}
    held.add(third)
    assert held.blocks() == {*second, *third}


@pytest.mark.parametrize(
    ("engines", "expected"),
    [
        # (name, queries, shared blocks)
        ([("a", 3, 0), ("b", 1, 0), ("c", 2, 0)], "bca"),
        ([("a", 3, 4), ("b", 1, 0), ("c", 2, 2)], "abc"),
        ([("a", 4, 4), ("b", 1, 0), ("c", 2, 2)], "bca"),  # its four rows are taken, others have some
        ([("a", 9, 4), ("b", 9, 0), ("c", 9, 2)], "abc"),  # all are taken: it is as good as any
        ([("a", 3, 4), ("b", 1, 4)], "ba"),
        ([], ""),
    ],
)
def test_the_holder_comes_first_unless_it_is_full(engines: list[tuple[str, int, int]], expected: str) -> None:
    assert "".join(in_order([Candidate(*one) for one in engines], num_rows=4)) == expected
