"""The greatest logits and their log-probabilities by compiled loops: what torch finds."""

from __future__ import annotations

import pytest
import torch

from osd.kernels.cpu.arrays import array, tensor
from osd.kernels.cpu.backend.layers import TiledProjection
from osd.kernels.cpu.backend.logits import CpuLogits, most_likely
from osd.kernels.cpu.kernels import kernels

_FOUND = kernels()
if _FOUND is None:
    pytest.skip("numba is not installed", allow_module_level=True)
_KERNELS = _FOUND


def _of(logits_RV: torch.Tensor) -> CpuLogits:
    return CpuLogits.of(_KERNELS, logits_RV[:, None])


def _logits(*shape: int, spread: float = 4.0, shift: float = 0.0) -> torch.Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(1)) * spread + shift).bfloat16()


def test_of_equal_ones_the_first_is_taken(num_threads: int) -> None:
    logits_RV = torch.full((2, 40_000), -1.0).bfloat16()
    logits_RV[0, [90, 39_999]] = 2.0
    assert most_likely(_KERNELS, logits_RV).tolist() == [90, 0]
    _, ids_NK, _, _ = _of(logits_RV).rank([0], [90], 4)
    assert ids_NK.tolist() == [[90, 39_999, 0, 1]]


@pytest.mark.parametrize("vocab_tokens", [40_000, 33])
def test_of_many_equal_ones_the_first_are_taken(vocab_tokens: int, num_threads: int) -> None:
    logits_RV = _logits(3, vocab_tokens).round() + 0.0  # or some would be -0, which is below
    _, ids_NK, _, _ = _of(logits_RV).rank(range(3), [0] * 3, 32)
    assert ids_NK.tolist() == logits_RV.float().sort(dim=1, descending=True, stable=True).indices[:, :32].tolist()


@pytest.mark.parametrize(
    "logits", [torch.zeros(2, 40_000), torch.zeros(40_000, 2).bfloat16().T, torch.zeros(1, 100).bfloat16()]
)
def test_where_there_is_no_loop_torch_looks(logits: torch.Tensor) -> None:
    logits[:, 7] = 1.0
    assert most_likely(_KERNELS, logits).tolist() == [7] * len(logits)


@pytest.mark.parametrize("num_rows", [1, 5, 37])
def test_a_product_finds_its_greatest_on_the_way(num_rows: int, num_threads: int) -> None:
    generator = torch.Generator().manual_seed(2)
    weight_OI = torch.randn(1_000, 64, generator=generator).bfloat16()
    weight_OI[700] = weight_OI[40]  # so that some rows have two that are equally great
    x_RI = torch.randn(num_rows, 64, generator=generator).bfloat16()
    x_RI[0] = weight_OI[40]
    project = TiledProjection(_KERNELS, weight_OI)
    logits_RV, best_R = project.project_and_argmax(array(x_RI))
    assert torch.equal(tensor(logits_RV), project(x_RI))
    assert best_R.tolist() == project(x_RI).float().argmax(dim=-1).tolist() and best_R[0] == 40
