"""Compares attention by Triton kernels with torch's reference on equal caches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from osd.kernels.gpu.attention import PiecewiseAttention
from osd.kernels.reference.attention import Attention, SdpaAttention
from osd.kernels.reference.flat_cache import FlatCache
from osd.kernels.reference.rotary import rotation
from osd.kernels.reference.window import PassWindow
from tests.kit.rounding import attention_gap, gap_of_rows


class AttentionBench:
    """Two equal caches with two layers, the second with limited reach; the reference computes in float64."""

    def __init__(
        self, dtype: torch.dtype, *, num_heads: int, size: int, reach: int | None, max_len: int, device: str = "cpu"
    ) -> None:
        self.device = torch.device(device)
        self.generator = torch.Generator().manual_seed(3)
        self.dtype, self.num_heads, self.size, self.max_len = dtype, num_heads, size, max_len
        likes = (torch.empty(0, dtype=one, device=self.device) for one in (torch.float64, dtype))
        self.caches = [FlatCache(2, 5, max_len, 2, size, like=like) for like in likes]
        exact, cache = self.caches
        cache.all.copy_(torch.randn(cache.all.shape, generator=self.generator))
        exact.all.copy_(cache.all)
        self.cos_LD, self.sin_LD = rotation(torch.arange(max_len - 3, device=self.device), size, 1e4, dtype)
        self.heads: dict[str, Any] = {
            "num_heads": num_heads, "num_key_heads": 2, "scale": size**-0.5, "reaches": [None, reach],
        }  # fmt: skip

    def look(self, starts: list[int], num_new: int, num_seen: int) -> list[tuple[Tensor, Tensor]]:
        """(reference, kernels) for both layers: the attention's results."""
        window = PassWindow(self.device)
        window.set_on_device(torch.tensor(starts, device=self.device), num_new, num_seen)
        seen = []
        turns = self.cos_LD, self.sin_LD
        ways: list[Attention] = [
            SdpaAttention(self.caches[0], window, *(turn.double() for turn in turns), **self.heads),
            PiecewiseAttention(self.caches[1], window, *turns, **self.heads),
        ]
        for layer in range(2):
            shape = len(starts) * num_new, (self.num_heads + 4) * self.size
            heads = torch.randn(shape, generator=self.generator).to(self.device, self.dtype)
            seen.append((ways[0](layer, heads.double()), ways[1](layer, heads.clone())))
        return seen

    def check(self, starts: list[int], num_new: int, num_seen: int) -> None:
        """Both return the same, and write the same to their caches."""
        tolerance = attention_gap(self.dtype, num_seen=num_seen)
        for exact, got in self.look(starts, num_new, num_seen):
            assert gap_of_rows(got, exact) < tolerance
        assert gap_of_rows(self.caches[1].all, self.caches[0].all) < tolerance
