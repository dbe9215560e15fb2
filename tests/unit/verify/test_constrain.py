"""Proposals cut to what constraints allow."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
import torch

from osd.machine.arrays import Numbers
from osd.records.drafter_id import DrafterId
from osd.records.proposal import Proposal
from osd.verify.constrain import cut_to_constraints, drawn_again, num_allowed
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


_GREEDY, _SAMPLED = (True,) * 4, (False,) * 4
_RANDOMS = [Random(seed) for seed in range(4)]


def _even(probs_V: torch.Tensor) -> torch.Tensor:
    """The distribution restricted to even tokens."""
    masked_V = probs_V * (torch.arange(VOCAB_TOKENS) % 2 == 0)
    return masked_V / masked_V.sum()


@pytest.mark.parametrize("is_array", [False, True])
@pytest.mark.parametrize("greedy", [_GREEDY, _SAMPLED])
def test_the_first_forbidden_token_is_drawn_again(is_array: bool, greedy: tuple[bool, ...]) -> None:
    """And every token up to it is stated to be drawn from the restricted distribution."""
    whole = proposal(is_drawn=True, is_array=is_array)
    again = drawn_again(whole, [EVEN, EVEN, EVEN, None], greedy, _RANDOMS)
    assert isinstance(again.token_ids_BK, np.ndarray) == isinstance(again.draft_probs_BKV, np.ndarray) == is_array
    assert list(again.lengths) == [3, 4, 1, 3]
    ids, probs_BKV = torch.as_tensor(again.token_ids_BK).tolist(), torch.as_tensor(again.draft_probs_BKV)
    before_BKV = torch.as_tensor(whole.draft_probs_BKV)
    for row, length in enumerate(again.lengths[:3]):
        assert all(token % 2 == 0 for token in ids[row][:length])
        assert ids[row][: length - 1] == IDS[row][: length - 1]
        for position in range(length):
            torch.testing.assert_close(probs_BKV[row, position], _even(before_BKV[row, position]))
        if all(greedy) and ids[row][length - 1] != IDS[row][length - 1]:
            assert ids[row][length - 1] == int(_even(before_BKV[row, length - 1]).argmax())
    assert ids[3] == IDS[3] and torch.equal(probs_BKV[3], before_BKV[3])
    assert torch.as_tensor(whole.token_ids_BK).tolist() == IDS


def test_it_is_drawn_from_the_restricted_distribution() -> None:
    weights_V = torch.zeros(VOCAB_TOKENS)
    weights_V[[1, 2, 4]] = torch.tensor([0.7, 0.2, 0.1])
    whole = Proposal(torch.tensor([[1]]), [1], weights_V.expand(1, 1, -1), None)
    generator = Random(3)
    drawn = [
        int(torch.as_tensor(drawn_again(whole, [EVEN], [False], [generator]).token_ids_BK)[0, 0]) for _ in range(600)
    ]
    assert set(drawn) == {2, 4} and abs(drawn.count(2) / 600 - 2 / 3) < 0.06


def test_tokens_that_cannot_be_drawn_again_stay() -> None:
    """Those that were not drawn, and those where the drafter has no allowed token at all."""
    certain = drawn_again(proposal(is_drawn=True, certain=(0, 1, 2)), [EVEN] * 3 + [None], _SAMPLED, _RANDOMS)
    assert torch.equal(torch.as_tensor(certain.token_ids_BK), torch.tensor(IDS)) and list(certain.lengths) == LENGTHS
    plain = proposal(is_drawn=False)
    assert drawn_again(plain, [EVEN] * 4, _SAMPLED, _RANDOMS) is plain
    odd_V = (torch.arange(VOCAB_TOKENS) % 2).float()
    probs_1KV = torch.stack([_even(torch.ones(VOCAB_TOKENS)), odd_V / odd_V.sum()])[None]
    none = drawn_again(Proposal(torch.tensor([[2, 3]]), [2], probs_1KV, None), [EVEN], [False], _RANDOMS)
    assert torch.as_tensor(none.token_ids_BK).tolist() == [[2, 3]] and list(none.lengths) == [2]
    assert torch.equal(torch.as_tensor(none.draft_probs_BKV)[0, 1], probs_1KV[0, 1])


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
