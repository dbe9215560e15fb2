"""The greatest logits and their log-probabilities by compiled loops: what torch finds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from osd.kernels.cpu.layers import TiledProjection
from osd.kernels.cpu.verdicts.logits import can_look_through, greatest, top_logprobs
from osd.kernels.most_likely import most_likely
from osd.machine.arrays import array, tensor


def _logits(*shape: int, spread: float = 4.0, shift: float = 0.0) -> torch.Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(1)) * spread + shift).bfloat16()


@pytest.mark.parametrize("shift", [0.0, -300.0, 5e4])
@pytest.mark.parametrize("vocab_tokens", [50_000, 49_999, 33_000])
def test_log_probabilities_are_torchs(vocab_tokens: int, shift: float, num_threads: int) -> None:
    logits_RV = _logits(7, vocab_tokens, shift=shift, spread=4.0 if shift < 1e3 else 1e3)
    places_N = np.array([6, 0, 0, 3])
    chosen_N = torch.tensor([5, 0, vocab_tokens - 1, 17])
    found = top_logprobs(array(logits_RV), places_N, chosen_N.numpy(), 16)
    chosen, ids_NK, logprobs_NK = (torch.from_numpy(one) for one in found)
    expected_NV = torch.log_softmax(logits_RV[torch.from_numpy(places_N)], dim=-1, dtype=torch.float32)
    torch.testing.assert_close(logprobs_NK, expected_NV.topk(16).values, atol=2e-4, rtol=1e-5)
    torch.testing.assert_close(expected_NV.gather(1, ids_NK.long()), logprobs_NK, atol=2e-4, rtol=1e-5)
    torch.testing.assert_close(chosen, expected_NV.gather(1, chosen_N[:, None])[:, 0], atol=2e-4, rtol=1e-5)
    assert all(len(set(ids)) == 16 for ids in ids_NK.tolist())


@pytest.mark.parametrize("shift", [0.0, -300.0])
def test_the_greatest_is_found(shift: float, num_threads: int) -> None:
    logits_BQV = _logits(5, 3, 49_152, shift=shift)
    assert can_look_through(logits_BQV)
    ids_BQ = most_likely(logits_BQV)
    assert ids_BQ.dtype == torch.long
    assert torch.equal(logits_BQV.gather(2, ids_BQ[..., None]), logits_BQV.amax(dim=-1, keepdim=True))


def test_of_equal_ones_the_first_is_taken(num_threads: int) -> None:
    logits_RV = torch.full((2, 40_000), -1.0).bfloat16()
    logits_RV[0, [90, 39_999]] = 2.0
    assert greatest(logits_RV).tolist() == [90, 0]
    _, ids_NK, _ = top_logprobs(array(logits_RV), np.array([0]), np.array([90]), 4)
    assert ids_NK.tolist() == [[90, 39_999, 0, 1]]


@pytest.mark.parametrize("vocab_tokens", [40_000, 33])
def test_of_many_equal_ones_the_first_are_taken(vocab_tokens: int, num_threads: int) -> None:
    logits_RV = _logits(3, vocab_tokens).round() + 0.0  # or some would be -0, which is below
    _, ids_NK, _ = top_logprobs(array(logits_RV), np.arange(3), np.zeros(3, np.int64), 32)
    assert ids_NK.tolist() == logits_RV.float().sort(dim=1, descending=True, stable=True).indices[:, :32].tolist()


def test_where_there_is_no_loop_torch_looks() -> None:
    assert not can_look_through(torch.zeros(2, 40_000))
    assert not can_look_through(torch.zeros(40_000, 2).bfloat16().T)
    assert not can_look_through(torch.zeros(1, 100).bfloat16())


@pytest.mark.parametrize("num_rows", [1, 5, 37])
def test_a_product_finds_its_greatest_on_the_way(num_rows: int, num_threads: int) -> None:
    generator = torch.Generator().manual_seed(2)
    weight_OI = torch.randn(1_000, 64, generator=generator).bfloat16()
    weight_OI[700] = weight_OI[40]  # so that some rows have two that are equally great
    x_RI = torch.randn(num_rows, 64, generator=generator).bfloat16()
    x_RI[0] = weight_OI[40]
    project = TiledProjection(weight_OI)
    logits_RV, best_R = project.find(array(x_RI))
    assert torch.equal(tensor(logits_RV), project(x_RI))
    assert best_R.tolist() == project(x_RI).float().argmax(dim=-1).tolist() and best_R[0] == 40
