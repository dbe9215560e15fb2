"""Puts the results of an overflow, NaN and infinity, into rows of a KV cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from osd.kernels.cpu.arrays import tensor
from osd.kernels.cpu.tiled_cache import TiledCache
from osd.kernels.reference.flat_cache import FlatCache
from osd.models.slot_cache import SlotCache
from tests.kit.tiles import contents, fill

Cache = SlotCache | FlatCache | TiledCache


def caches_of(engine: Any) -> list[Cache]:
    """The target's cache, and the drafter's if there is one."""
    found = [engine.target.lm.cache]
    if engine.drafter is not None:
        found.append(engine.drafter.round.cache if engine.drafter.kind == "feature" else engine.drafter._lm.cache)
    return found


def poison(cache: Cache, value: float, row: int, start: int = 0, stop: int | None = None) -> None:
    """Write `value` over keys and values of a row's positions `start .. stop - 1`, in every layer."""
    if isinstance(cache, SlotCache):
        for layer in cache.layers:
            layer.keys[row, :, start:stop] = layer.values[row, :, start:stop] = value
    elif isinstance(cache, FlatCache):
        cache.all[:, row, :, start:stop] = value
    else:
        flat = flat_contents(cache)
        flat[:, cache.slots[row], :, start:stop] = value
        fill(cache, flat)


def num_not_finite(cache: Cache, row: int) -> int:
    """The number of NaN and infinite elements in a row's keys and values."""
    if isinstance(cache, SlotCache):
        kept = [one[row] for layer in cache.layers for one in (layer.keys, layer.values)]
    else:
        kept = [cache.all[:, row]] if isinstance(cache, FlatCache) else [flat_contents(cache)[:, cache.slots[row]]]
    return sum(int((~one.isfinite()).sum()) for one in kept)


def flat_contents(cache: TiledCache) -> Tensor:
    """The contents of a tiled cache by slot and position, `[A, S, 2M, L, D]`."""
    num_layers, num_slots, num_key_heads, num_blocks, num_steps, _ = cache.keys_ASMCKW.shape
    kind = tensor(cache._keys[:0, 0, 0, 0, 0]).dtype
    size = num_steps * 4 // kind.itemsize
    return contents(cache, torch.empty(num_layers, num_slots, 2 * num_key_heads, num_blocks * 32, size, dtype=kind))
