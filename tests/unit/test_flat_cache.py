"""Rows change places and are copied, wherever they are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from osd.models.flat_cache import FlatCache


def _rows(cache: FlatCache) -> Tensor:
    """What each row holds, `[S, layers, 2M, L, D]`, as a pass finds it."""
    return cache.all.transpose(0, 1)[cache.slots.tolist()]


@pytest.mark.parametrize("by_slots", [True, False])
def test_swaps_and_copies(by_slots: bool) -> None:
    cache = FlatCache(2, 4, 6, 1, 3, torch.empty(0), by_slots=by_slots)
    cache.all[:] = torch.arange(cache.all.numel(), dtype=torch.float32).view(cache.all.shape)
    first = _rows(cache)
    cache.swap(0, 2, 5)
    cache.swap(2, 3, 4)
    cache.copy(0, 1, 3)
    expected = first.clone()
    for row, source, num_tokens in ((0, 2, 5), (3, 0, 4), (2, 3, 4)):
        expected[row, :, :, :num_tokens] = first[source, :, :, :num_tokens]
    expected[1, :, :, :3] = first[2, :, :, :3]
    valid = (5, 6, 4, 4)  # what comes after means nothing
    for row, num_tokens in enumerate(valid):
        assert torch.equal(_rows(cache)[row, :, :, :num_tokens], expected[row, :, :, :num_tokens]), row
