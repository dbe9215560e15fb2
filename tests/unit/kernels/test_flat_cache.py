"""Rows change places and are copied, wherever they are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from osd.kernels.cpu.tiled_cache import TiledCache
from osd.kernels.reference.flat_cache import FlatCache
from tests.kit.tiles import contents, fill

_SHAPE = 2, 4, 70, 1, 6
_HELD = torch.arange(2 * 4 * 2 * 70 * 6, dtype=torch.float32).view(2, 4, 2, 70, 6)


def _flat() -> tuple[FlatCache, Callable[[], Tensor]]:
    cache = FlatCache(*_SHAPE, like=_HELD)
    cache.all.copy_(_HELD)
    return cache, lambda: cache.all.clone()


def _tiled(dtype: torch.dtype) -> tuple[TiledCache, Callable[[], Tensor]]:
    cache, held = TiledCache(*_SHAPE, like=torch.empty(0, dtype=dtype)), (_HELD % 256).to(dtype)
    fill(cache, held)
    return cache, lambda: contents(cache, held)[:, cache.slots.tolist()]


@pytest.mark.parametrize("kind", [None, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("start", "held"), [(0, None), (33, None), (0, 40), (64, 65), (70, None)])
def test_a_cleared_row_is_zero_and_no_other(kind: torch.dtype | None, start: int, held: int | None) -> None:
    """From an odd position on, too, where a step of two bfloat16 values is cleared by half."""
    cache, rows_of = _flat() if kind is None else _tiled(kind)
    cache.swap(0, 2, 70)
    expected = rows_of()
    cache.clear(2, start, held)
    end = held if kind and held else 70
    rows = rows_of()
    assert not rows[:, 2, :, start:end].any()
    assert torch.equal(rows[:, 2, :, :start], expected[:, 2, :, :start])
    expected[:, 2] = rows[:, 2] = 0
    assert torch.equal(rows, expected)


@pytest.mark.parametrize("kind", [None, torch.float32, torch.bfloat16])
def test_swaps_and_copies(kind: torch.dtype | None) -> None:
    cache, rows_of = _flat() if kind is None else _tiled(kind)
    first = rows_of()
    cache.swap(0, 2, 50)
    cache.swap(2, 3, 40)
    cache.copy(0, 1, 33)
    expected = first.clone()
    for row, source, num_tokens in ((0, 2, 50), (3, 0, 40), (2, 3, 40)):
        expected[:, row, :, :num_tokens] = first[:, source, :, :num_tokens]
    expected[:, 1, :, :33] = first[:, 2, :, :33]
    rows = rows_of()
    for row, num_tokens in enumerate((50, 33, 40, 40)):  # what comes after means nothing
        assert torch.equal(rows[:, row, :, :num_tokens], expected[:, row, :, :num_tokens]), row


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head_size", [6, 64, 80])
def test_a_tiled_cache_takes_a_flat_ones_rows_bit_for_bit(dtype: torch.dtype, head_size: int) -> None:
    shape = 3, 4, 70, 2, head_size
    values = torch.randint(-(2**15), 2**15, (3, 4, 4, 70, head_size), generator=torch.Generator().manual_seed(1))
    flat = FlatCache(*shape, like=torch.empty(0, dtype=dtype))
    flat.all.copy_(values.to(torch.int16).view(torch.bfloat16).nan_to_num().to(dtype))
    tiled = TiledCache(*shape, like=flat.all)
    tiled.swap(1, 2, 70)  # rows need not be where they were at first
    for row, num_tokens in enumerate((1, 31, 32, 70)):
        tiled.write_row(row, *flat.row(row, num_tokens))
    taken = contents(tiled, flat.all)[:, tiled.slots.tolist()]
    for row, num_tokens in enumerate((1, 31, 32, 70)):
        assert torch.equal(taken[:, row, :, :num_tokens], flat.all[:, row, :, :num_tokens]), row
        assert not taken[:, row, :, num_tokens:].any(), row
