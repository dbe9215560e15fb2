"""A `feature` drafter's round in one compiled call proposes what its steps one by one do."""

from __future__ import annotations

from random import Random

import pytest
import torch

from osd.drafters.feature import FeatureDrafter
from osd.kernels.cpu.arrays import tensor
from osd.kernels.cpu.backend.feature_round import CpuFeatureRound
from osd.kernels.cpu.kernels import kernels
from osd.kernels.reference.drafting.feature_net import FeatureConfig, FeatureNet
from osd.records.proposal import DraftBatch
from osd.records.query import SamplingParams
from osd.records.shared_rows import SharedRows
from tests.kit.backends import fastest

pytestmark = pytest.mark.skipif(kernels() is None, reason="numba is not installed")

_HIDDEN, _VOCAB, _KNOWN, _SLOTS, _LEN = 128, 96, 40, 4, 64
_GREEDY, _SAMPLED = SamplingParams(temperature=0.0), SamplingParams(temperature=1.0)
_NUCLEUS = SamplingParams(temperature=0.8, top_p=0.6)


def drafters(dtype: torch.dtype = torch.bfloat16) -> tuple[FeatureDrafter, FeatureDrafter]:
    """One as it serves, one that never takes a round in one call."""
    generator = torch.Generator().manual_seed(3)
    embedding_VH, head_VH = torch.randn(2, _VOCAB, _HIDDEN, generator=generator).to(dtype)
    shared = SharedRows(embedding_VH, head_VH, torch.randn(_VOCAB, generator=generator).to(dtype))
    config = FeatureConfig.for_target(_HIDDEN, _VOCAB, _KNOWN, window_tokens=8)
    net = FeatureNet(config)
    net.reset_parameters(seed=5)
    state = net.state_dict()
    state["vocab_ids_R"] = torch.randperm(_VOCAB, generator=generator)[:_KNOWN]
    chained, stepped = (
        FeatureDrafter(config, shared, fastest(), num_slots=_SLOTS, max_context_tokens=_LEN, max_length=4) for _ in "ab"
    )
    for drafter in (chained, stepped):
        drafter.prepare(state, 1)()
    assert isinstance(stepped.round, CpuFeatureRound)
    stepped.round.is_one_call = False
    return chained, stepped


@pytest.mark.usefixtures("num_threads")
def test_a_round_in_one_call_is_its_steps() -> None:
    """Rows of unlike length, with as many new entries as come; rounds with sampled rows between share the cache."""
    chained, stepped = drafters()
    assert isinstance(chained.round, CpuFeatureRound) and chained.round.is_one_call
    generator = torch.Generator().manual_seed(4)
    tokens_SL = torch.randint(_VOCAB, (_SLOTS, _LEN), generator=generator)
    hidden_SLH = torch.randn(_SLOTS, _LEN, _HIDDEN, generator=generator).bfloat16()
    num_tokens = [2, 30, 9, 17]  # the longest catches up alone, and further back than its window
    seen = set()
    for number, lengths in enumerate([[4, 4, 4, 4], [1, 0, 2, 1], [2, 3, 0, 3], [4, 1, 3], [1], [3, 3, 3, 3]]):
        params = [[_GREEDY, _SAMPLED, _NUCLEUS][number % 3 if row < 2 else 0] for row in range(len(lengths))]
        proposals = [
            drafter.propose(
                DraftBatch(
                    tokens_SL,
                    hidden_SLH,
                    num_tokens[: len(lengths)],
                    lengths,
                    params,
                    [Random(row) for row in range(len(lengths))],
                )
            )
            for drafter in (chained, stepped)
        ]
        own, expected = proposals
        assert own.token_ids_BK.shape == (len(lengths), max(lengths))
        own_BK = tensor(own.token_ids_BK)
        assert torch.equal(own_BK, tensor(expected.token_ids_BK))
        if number % 3:
            assert own.draft_probs_BKV is not None and expected.draft_probs_BKV is not None
            own_probs_BKV, expected_BKV = tensor(own.draft_probs_BKV)[:2], tensor(expected.draft_probs_BKV)[:2]
            torch.testing.assert_close(own_probs_BKV, expected_BKV, rtol=1e-3, atol=1e-6)
            assert bool((own_probs_BKV.gather(2, own_BK[:2, :, None]) > 0).all())
        else:
            assert own.draft_probs_BKV is expected.draft_probs_BKV is None
        seen.update(own.token_ids_BK.flatten().tolist())
        num_tokens = [num + 1 + (row + number) % 5 for row, num in enumerate(num_tokens)]
    assert len(seen) > 10
    assert max(seen) >= _KNOWN  # ids of the target's, not places in the drafter's vocabulary


def test_in_float32_the_steps_go_one_by_one() -> None:
    chained, _ = drafters(torch.float32)
    assert isinstance(chained.round, CpuFeatureRound) and not chained.round.is_one_call
