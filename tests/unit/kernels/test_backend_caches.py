"""Every back end's caches and memories of rows hold what was put there, bit for bit, and forget what they should."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from osd.kernels.backend import Cache, adopt_rows
from osd.kernels.cpu.tiled_cache import TiledCache
from osd.kernels.reference.flat_cache import FlatCache
from osd.kernels.reference.window import PassWindow
from osd.models.slot_cache import SlotCache
from tests.unit.kernels.conftest import Case

_LAYERS, _SLOTS, _LEN, _HEADS = 2, 4, 70, 2
_CACHES = ["flat", "tiled", "plain"]


def _cache(kind: str, head_size: int, dtype: torch.dtype) -> Cache:
    shape, like = (_LAYERS, _SLOTS, _LEN, _HEADS, head_size), torch.empty(0, dtype=dtype)
    if kind == "plain":
        return SlotCache(PassWindow(torch.device("cpu")), _LAYERS, _SLOTS, _LEN)
    return FlatCache(*shape, like=like) if kind == "flat" else TiledCache(*shape, like=like)


def _filled(kind: str, head_size: int, dtype: torch.dtype, num_tokens: int = _LEN) -> tuple[Cache, Tensor]:
    """A cache, and what its rows hold: keys, then values, `[2, S, A, M, L, D]`."""
    shape = 2, _SLOTS, _LAYERS, _HEADS, num_tokens, head_size
    held = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    cache = _cache(kind, head_size, dtype)
    for row in range(_SLOTS):
        cache.write_row(row, *held[:, row])
    return cache, held


def _rows(cache: Cache, num_tokens: int = _LEN) -> Tensor:
    return torch.stack([torch.stack(cache.row(row, num_tokens)) for row in range(_SLOTS)], dim=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head_size", [6, 64, 80])
@pytest.mark.parametrize("kind", _CACHES)
def test_rows_are_read_as_they_were_written(kind: str, head_size: int, dtype: torch.dtype) -> None:
    for num_tokens in (1, 31, 32, 70):
        cache, held = _filled(kind, head_size, dtype, num_tokens)
        assert torch.equal(_rows(cache, num_tokens), held)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("source", _CACHES)
@pytest.mark.parametrize("kind", _CACHES)
def test_a_cache_takes_anothers_rows(kind: str, source: str, dtype: torch.dtype) -> None:
    other, held = _filled(source, 6, dtype)
    other.swap(1, 2, _LEN)  # rows need not be where they were at first
    cache = _cache(kind, 6, dtype)
    adopt_rows(cache, other, [1, 0, 33, 70])
    for row, before, num_tokens in ((0, 0, 1), (2, 1, 33), (3, 3, 70)):
        assert torch.equal(torch.stack(cache.row(row, num_tokens)), held[:, before, :, :, :num_tokens])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("start", "written"), [(0, None), (33, None), (0, 40), (64, 65), (70, None)])
@pytest.mark.parametrize("kind", _CACHES)
def test_a_cleared_row_is_zero_and_no_other(kind: str, start: int, written: int | None, dtype: torch.dtype) -> None:
    """From an odd position on, too, where a step of two bfloat16 values is cleared by half."""
    cache, held = _filled(kind, 6, dtype)
    cache.swap(0, 2, _LEN)
    cache.clear(2, start, written)
    rows, expected = _rows(cache), held[:, [2, 1, 0, 3]]
    assert not rows[:, 2, :, :, start : written or _LEN].any()
    assert torch.equal(rows[:, 2, :, :, :start], expected[:, 2, :, :, :start])
    assert torch.equal(rows[:, [0, 1, 3]], expected[:, [0, 1, 3]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", _CACHES)
def test_swaps_and_copies(kind: str, dtype: torch.dtype) -> None:
    cache, held = _filled(kind, 6, dtype)
    cache.swap(0, 2, 50)
    cache.swap(2, 3, 40)
    cache.copy(0, 1, 33)
    rows = _rows(cache)
    for row, before, num_tokens in ((0, 2, 50), (1, 2, 33), (2, 3, 40), (3, 0, 40)):  # what comes after means nothing
        assert torch.equal(rows[:, row, :, :, :num_tokens], held[:, before, :, :, :num_tokens]), row


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", _CACHES)
def test_what_is_not_finite_is_zeroed(kind: str, dtype: torch.dtype) -> None:
    cache, held = _filled(kind, 6, dtype)
    held[0, 1, 0, 1, 13, 2], held[1, 3, 1, 0, 40, 5] = torch.nan, torch.inf
    for row in (1, 3):
        cache.write_row(row, *held[:, row])
    cache.clear_non_finite()
    assert torch.equal(_rows(cache), held.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0))


def test_a_memory_of_rows(case: Case) -> None:
    memory = case.backend.rows(3, 12, torch.empty(0, 4, device=case.device, dtype=case.dtype))
    memory.write(1, 2, [7, 8, 9])
    memory.write_rows([5, 0, 3], [[1, 2], [], [3]])
    expected_SL = torch.zeros(3, 12, dtype=torch.long)
    expected_SL[1, 2:5], expected_SL[0, 5:7], expected_SL[2, 3] = torch.tensor([7, 8, 9]), torch.tensor([1, 2]), 3
    assert torch.equal(memory.tokens_SL.cpu(), expected_SL)
    hidden_BQH = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)).to(case.device, case.dtype)
    hidden_BQH[1, 1, 2], hidden_BQH[0, 0, 0] = torch.nan, -torch.inf
    memory.keep(1, [4, 0], hidden_BQH)
    first_QH, second_QH = hidden_BQH.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    assert torch.equal(memory.hidden_SLH[1, 4:7], first_QH)
    assert torch.equal(memory.hidden_SLH[2, :3], second_QH)
    copied = memory.copy_hidden(1, 4, 7)
    memory.swap(1, 2, 7)
    assert torch.equal(copied().to(case.dtype), first_QH.cpu().to(copied().dtype).to(case.dtype))
    assert torch.equal(memory.hidden_SLH[2, 4:7], first_QH)
    assert torch.equal(memory.hidden_SLH[1, :3], second_QH)
    assert memory.tokens_SL[2].tolist()[:7] == [0, 0, 7, 8, 9, 0, 0] and memory.tokens_SL[1, 3] == 3
    memory.copy(2, 0, 6)
    assert memory.tokens_SL[0].tolist()[:7] == [0, 0, 7, 8, 9, 0, 2]
    assert torch.equal(memory.hidden_SLH[0, 4:6], first_QH[:2]) and not memory.hidden_SLH[0, 6:].any()
