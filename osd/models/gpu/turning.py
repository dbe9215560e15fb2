"""Rotary embedding and the cache's new entries of one layer, in one launch.

Shapes: B rows, Q new positions, N query heads, M key/value heads, X = N + 2M, L positions, D head size.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _turn_and_keep(
    heads, starts, cos, sin, cached, row_stride, position_stride, head_stride, num_new, num_known, num_heads,
    num_key_heads, SIZE: tl.constexpr, SIZE_UP: tl.constexpr
):  # fmt: skip
    """One head of one new position: programs `[B * Q, X]`."""
    token, head = tl.program_id(0), tl.program_id(1)
    row, new = token // num_new, token % num_new
    position = tl.load(starts + row) + new
    d = tl.arange(0, SIZE_UP)
    is_within = d < SIZE
    place = heads + (token * (num_heads + 2 * num_key_heads) + head) * SIZE
    x = tl.load(place + d, mask=is_within, other=0.0)
    if head < num_heads + num_key_heads:
        # Padding may stand beyond the positions that the model knows.
        angle = tl.minimum(position, num_known - 1) * SIZE
        swapped = tl.load(place + (d + SIZE // 2) % SIZE, mask=is_within, other=0.0)
        turned = x.to(tl.float32) * tl.load(cos + angle + d, mask=is_within, other=0.0).to(tl.float32)
        turned += swapped.to(tl.float32) * tl.load(sin + angle + d, mask=is_within, other=0.0).to(tl.float32)
        x = turned.to(x.dtype)
    if head < num_heads:
        tl.debug_barrier()  # other threads of this head have read its other half by now
        tl.store(place + d, x, mask=is_within)
    else:
        entry = row.to(tl.int64) * row_stride + position * position_stride + (head - num_heads) * head_stride
        tl.store(cached + entry + d, x, mask=is_within)


def turn_and_keep(
    heads_BQXD: Tensor, starts_B: Tensor, cos_LD: Tensor, sin_LD: Tensor, cached_BLYD: Tensor, num_heads: int
) -> None:
    """Turn the queries in place; turn the keys, and keep them and the values in the cache.

    Args:
        heads_BQXD: projected queries, keys and values, contiguous.
        starts_B: each row's first new position.
        cos_LD: cosines by position.
        sin_LD: signed sines by position.
        cached_BLYD: a layer's cache by position: Y = 2M heads, keys first.
        num_heads: N.
    """
    num_rows, num_new, num_all, size = heads_BQXD.shape
    _turn_and_keep[(num_rows * num_new, num_all)](
        heads_BQXD, starts_B, cos_LD, sin_LD, cached_BLYD, *cached_BLYD.stride()[:3], num_new, len(cos_LD),
        num_heads, (num_all - num_heads) // 2, SIZE=size, SIZE_UP=triton.next_power_of_2(size), num_warps=1,
    )  # fmt: skip
