"""Converts between a tiled cache and the flat layout `[A, S, 2M, L, D]`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from osd.kernels.cpu.products.tiling import WIDTH
from osd.kernels.cpu.tiled_cache import TiledCache


def fill(cache: TiledCache, flat: Tensor) -> None:
    """Write keys and values of all slots."""
    kept_keys, kept_values = _by_element(cache, flat.dtype)
    per_step = kept_keys.shape[-1]
    keys, values = flat.chunk(2, dim=2)
    whole = _whole(keys, keys.shape[4])
    by_block = whole.view(*whole.shape[:3], -1, WIDTH, keys.shape[4] // per_step, per_step)
    kept_keys.copy_(by_block.transpose(4, 5))
    size = -(-values.shape[4] // WIDTH) * WIDTH
    whole = _whole(values, size)
    by_part = whole.view(*whole.shape[:3], -1, per_step, size // WIDTH, WIDTH)
    kept_values.copy_(by_part.permute(0, 1, 2, 5, 3, 6, 4))


def contents(cache: TiledCache, like: Tensor) -> Tensor:
    """The cache's contents in the shape of `like`."""
    keys, values = _by_element(cache, like.dtype)
    flat = (
        keys.transpose(4, 5).flatten(3, 4).flatten(4, 5),
        values.permute(0, 1, 2, 4, 6, 3, 5).flatten(3, 4).flatten(4, 5),
    )
    return torch.cat([one[..., : like.shape[3], : like.shape[4]] for one in flat], dim=2)


def _by_element(cache: TiledCache, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Views of keys `[A, S, M, C, K, W, E]` and values `[A, S, M, H, T, W, E]`."""
    by_step = (torch.from_numpy(one.view("int32")) for one in (cache.keys_ASMCKW, cache.values_ASMHTW))
    keys, values = (one.view(dtype).view(*one.shape, -1) for one in by_step)
    return keys, values


def _whole(heads: Tensor, size: int) -> Tensor:
    """Pad with zeros to whole blocks of positions and to a head size."""
    return F.pad(heads, (0, size - heads.shape[4], 0, -heads.shape[3] % WIDTH))
