"""Attention in pieces, compiled for a CUDA device, beside torch's. Run with `pytest -m gpu` where there is one."""

from __future__ import annotations

import pytest
import torch

from osd.kernels.gpu.decoder import GpuDecoder
from tests.kit.attention_bench import AttentionBench
from tests.kit.engine_kit import make_target, tiny_llama

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("num_heads", "size"), [(6, 64), (8, 128), (2, 80)])
@pytest.mark.parametrize("reach", [None, 300])
@pytest.mark.parametrize(
    ("starts", "num_new", "num_seen"), [([700], 1, 1024), ([3, 127, 1000, 2040], 5, 2048), ([90, 2], 16, 128)]
)
def test_it_looks_where_torch_does(
    dtype: torch.dtype, num_heads: int, size: int, reach: int | None, starts: list[int], num_new: int, num_seen: int
) -> None:
    bench = AttentionBench(dtype, num_heads=num_heads, size=size, reach=reach, max_len=2100, device="cuda")
    bench.check(starts, num_new, num_seen)


def test_a_captured_pass_may_choose_it() -> None:
    decoder = make_target(tiny_llama().cuda()).lm.decoder
    assert isinstance(decoder, GpuDecoder) and decoder.kernels is not None
