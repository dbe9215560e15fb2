"""A proposal of which nothing was drawn is judged like one that was drawn from one-hot distributions."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from osd.verify.block_rule import reject_blockwise
from osd.verify.token_rule import reject_tokenwise

_VOCAB = 5


@pytest.mark.parametrize("reject", [reject_tokenwise, reject_blockwise])
def test_no_distribution_stands_for_one_of_probability_one(reject: Callable[..., tuple[Tensor, Tensor]]) -> None:
    generator, lengths_B = torch.Generator().manual_seed(0), torch.tensor([3, 0, 1, 2])
    seen: set[int] = set()
    for _ in range(200):
        target_BQV = torch.rand(4, 4, _VOCAB, generator=generator, dtype=torch.float64) ** 4
        target_BQV /= target_BQV.sum(dim=-1, keepdim=True)
        proposed_BK = target_BQV[:, :3].argmax(dim=-1)
        proposed_BK[torch.rand(4, 3, generator=generator) < 0.2] = 1
        uniform_BQ = torch.rand(4, 4, generator=generator, dtype=torch.float64)
        certain_BKV = F.one_hot(proposed_BK, _VOCAB).double()
        expected_B2 = torch.stack(reject(target_BQV, certain_BKV, proposed_BK, lengths_B, uniform_BQ))
        assert torch.equal(torch.stack(reject(target_BQV, None, proposed_BK, lengths_B, uniform_BQ)), expected_B2)
        seen.update(expected_B2[0].tolist())
    assert seen == {0, 1, 2, 3}
