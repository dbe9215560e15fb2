"""Products of few rows and what stands between them, compiled for a CUDA device. Run with `pytest -m gpu`."""

from __future__ import annotations

import pytest
import torch

from tests.kit.product_bench import ProductBench
from tests.unit.kernels.test_gpu_product import drafter_that_reads, rounds_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("coded", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("num_rows", "num_inputs", "num_outputs"), [(1, 4096, 6144), (5, 576, 960), (16, 1536, 576), (3, 1024, 33_000)]
)
def test_products_are_what_torch_says(
    dtype: torch.dtype, num_rows: int, num_inputs: int, num_outputs: int, coded: bool
) -> None:
    bench = ProductBench(dtype, num_rows=num_rows, num_inputs=num_inputs, num_outputs=num_outputs, device="cuda")
    bench.check_products(coded=coded)
    bench.check_rows()


@pytest.mark.parametrize("num_values", [4, 2048, 128_256])
def test_the_highest_is_the_first_of_equal_ones(num_values: int) -> None:
    from osd.kernels.gpu.highest import highest

    values_RV = torch.randint(0, 300, (5, num_values), device="cuda").bfloat16()
    greatest_R1 = values_RV.amax(dim=1, keepdim=True)
    places_V = torch.arange(num_values, device="cuda")
    first_R = torch.where(values_RV == greatest_R1, places_V, num_values).amin(dim=1)
    assert torch.equal(highest(values_RV), first_R)


def test_a_drafters_round_by_kernels_proposes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    proposals = [rounds_of(drafter_that_reads(by_kernels, monkeypatch, "cuda")) for by_kernels in (False, True)]
    assert torch.equal(*proposals)
