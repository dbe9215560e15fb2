"""Proposals cut to what constraints allow."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from osd.machine.arrays import Numbers
from osd.records.drafter_id import DrafterId
from osd.records.proposal import Proposal
from osd.verify.constrain import cut_to_constraints, num_allowed
from tests.kit.constraints import EvenTokens

VOCAB_TOKENS = 70
EVEN = EvenTokens(VOCAB_TOKENS)
IDS = [[2, 4, 65, 6], [66, 8, 10, 12], [3, 2, 2, 2], [5, 5, 5, 0]]
LENGTHS = [4, 4, 4, 3]


def proposal(*, is_drawn: bool, is_array: bool = False, certain: tuple[int, ...] = ()) -> Proposal:
    ids_BK, probs_BKV = torch.tensor(IDS), torch.rand(4, 4, VOCAB_TOKENS)
    numbers: list[Numbers] = [ids_BK.numpy(), probs_BKV.numpy()] if is_array else [ids_BK, probs_BKV]
    return Proposal(numbers[0], LENGTHS, numbers[1] if is_drawn else None, DrafterId("x", 1), frozenset(certain))


def test_tokens_up_to_the_first_that_is_forbidden() -> None:
    assert [num_allowed(EVEN, ids) for ids in ([], [2, 64, 66], [2, 3, 4], [65])] == [0, 3, 1, 0]


@pytest.mark.parametrize(
    ("is_drawn", "certain", "greedy", "lengths"),
    [
        (False, (), (False, False, False, False), [2, 4, 0, 3]),
        (True, (), (True, True, True, True), [2, 4, 0, 3]),
        (True, (), (False, False, False, False), [3, 4, 1, 3]),  # a drawn token that is forbidden is rejected
        (True, (0,), (False, False, False, False), [2, 4, 1, 3]),
    ],
)
def test_which_tokens_are_kept(
    is_drawn: bool, certain: tuple[int, ...], greedy: tuple[bool, ...], lengths: list[int]
) -> None:
    """The last row has no constraint."""
    whole = proposal(is_drawn=is_drawn, certain=certain)
    cut = cut_to_constraints(whole, [EVEN, EVEN, EVEN, None], greedy)
    assert cut is not None and list(cut.lengths) == lengths
    assert torch.equal(torch.as_tensor(cut.token_ids_BK), torch.tensor(IDS))
    assert cut.draft_probs_BKV is whole.draft_probs_BKV and cut.certain_rows == whole.certain_rows


@pytest.mark.parametrize("is_array", [False, True])
def test_what_is_left_is_as_wide_as_its_longest_row(is_array: bool) -> None:
    whole = proposal(is_drawn=True, is_array=is_array)
    cut = whole.cut([2, 1, 0, 0])
    assert cut is not None
    ids_BK, probs_BKV = np.asarray(cut.token_ids_BK), np.asarray(cut.draft_probs_BKV)
    assert ids_BK.tolist() == [ids[:2] for ids in IDS]
    assert ids_BK.flags.c_contiguous and probs_BKV.flags.c_contiguous
    assert np.array_equal(probs_BKV, np.asarray(whole.draft_probs_BKV)[:, :2])
    assert whole.cut([0, 0, 0, 0]) is None
