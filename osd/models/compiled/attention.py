"""Attention over the slot cache, one row's queries of one key head at a time, as two products of tiles.

Keys are laid out anew for each use: 32 of them are to 32 scores what a tile's weights are to its outputs.

Shapes: Q new positions, L positions looked at, N query heads, M key/value heads, G = N / M, P = Q * G, X = N + 2M,
Y = 2M, D head size, S steps, W = 32.
"""

from __future__ import annotations

import numpy as np
from numba import types
from numba.extending import overload

from osd.models.compiled import outputs
from osd.models.compiled.bits import Array, apart, exp, inner, narrow, room, widen
from osd.models.compiled.rearrange import interleave, transpose
from osd.models.compiled.rows import norm
from osd.models.compiled.tile import leave, ready, rows_at_once, sums
from osd.models.compiled.tiling import WIDTH

_LOWEST = np.float32(-1e30)
"""Below every score; fast maths knows no infinity."""
_NEAR = 128
"""Positions laid out at once: the nearest cache holds them."""


@inner
def keep(
    heads_QXD: Array,
    cos_LD: Array,
    sin_LD: Array,
    key_norm_D: Array,
    eps: np.float32,
    cache_YLD: Array,
    key_head: int,
    start: int,
) -> None:
    """Write one key head's new keys, turned, and values from position `start` on."""
    num_key_heads = len(cache_YLD) // 2
    num_heads = heads_QXD.shape[1] - 2 * num_key_heads
    for q in range(len(heads_QXD)):
        known = min(start + q, len(cos_LD) - 1)  # padding may stand beyond the positions that the model knows
        key_D = cache_YLD[key_head, start + q]
        _turned(heads_QXD[q, num_heads + key_head], cos_LD[known], sin_LD[known], key_norm_D, eps, key_D)
        value_D, kept_D = (
            heads_QXD[q, num_heads + num_key_heads + key_head],
            cache_YLD[num_key_heads + key_head, start + q],
        )
        for d in range(len(value_D)):
            kept_D[d] = value_D[d]


@inner
def _turned(head_D: Array, cos_D: Array, sin_D: Array, norm_D: Array, eps: np.float32, out_D: Array) -> None:
    """A head, normed where the model does that, turned by its position's angles; the sines are signed."""
    if len(norm_D) > 0:
        normed_D = np.empty_like(head_D)
        norm(head_D, norm_D, eps, normed_D)
        head_D = normed_D
    half = len(head_D) // 2
    first_D, second_D, cos2_D, sin2_D, out2_D = head_D[:half], head_D[half:], cos_D[half:], sin_D[half:], out_D[half:]
    for i in range(half):
        first, second = widen(first_D[i]), widen(second_D[i])
        out_D[i] = narrow(first * cos_D[i] + second * sin_D[i], out_D)
        out2_D[i] = narrow(second * cos2_D[i] + first * sin2_D[i], out_D)


@inner
def look(
    heads_QXD: Array,
    cos_LD: Array,
    sin_LD: Array,
    query_norm_D: Array,
    eps: np.float32,
    cache_YLD: Array,
    key_head: int,
    start: int,
    first: int,
    reach: int,
    scale: np.float32,
    out_QND: Array,
) -> None:
    """What one key head's queries, from position `start` on, see from position `first` on, `reach` back at most."""
    num_new, num_heads, size = out_QND.shape
    num_key_heads = len(cache_YLD) // 2
    group = num_heads // num_key_heads
    query_PD = room(num_new * group, size, heads_QXD)
    for p in range(len(query_PD)):
        at = min(start + p // group, len(cos_LD) - 1)
        head_D = heads_QXD[p // group, key_head * group + p % group]
        _turned(head_D, cos_LD[at], sin_LD[at], query_norm_D, eps, query_PD[p])
    low = max(first, start - reach + 1, 0)
    high = start + num_new
    score_PL = room(len(query_PD), (high - low + WIDTH - 1) // WIDTH * WIDTH, cos_LD)
    _scores(query_PD, cache_YLD[key_head, low:high], score_PL)
    share_PL = room(len(query_PD), score_PL.shape[1], heads_QXD)
    for p in range(len(query_PD)):
        at = start + p // group
        _softmax(score_PL[p], max(first, at - reach + 1, 0) - low, at + 1 - low, scale, share_PL[p])
    mixed_PD = room(len(query_PD), (size + WIDTH - 1) // WIDTH * WIDTH, cos_LD)
    _mix(share_PL, cache_YLD[num_key_heads + key_head, low:high], mixed_PD)
    for p in range(len(query_PD)):
        out_D = out_QND[p // group, key_head * group + p % group]
        for d in range(size):
            out_D[d] = narrow(mixed_PD[p, d], out_D)


@apart
def _scores(query_PD: Array, keys_LD: Array, score_PL: Array) -> None:
    """Every query's product with every key; what is beyond the last key is meaningless."""
    keys_LS, at_once, num_ready = keys_LD.view(np.uint32), rows_at_once(query_PD), 0
    num_tiles, num_rows = _NEAR // WIDTH, 1 + keys_LS.shape[1]
    tiles_TSW = room(num_tiles * num_rows, WIDTH, keys_LS).reshape(num_tiles, num_rows, WIDTH)
    tiles_TSW[:, 0] = 0  # biases
    for near in range(0, len(keys_LS), _NEAR):
        beyond = min(near + _NEAR, len(keys_LS))
        for at in range(near, beyond, WIDTH):
            transpose(keys_LS[at : min(at + WIDTH, beyond)], tiles_TSW[(at - near) // WIDTH, 1:])
        for p in range(0, len(query_PD), at_once):
            some_PD = query_PD[p : p + at_once]
            num_ready = ready(some_PD, num_ready)
            for at in range(near, beyond, WIDTH):
                sums(some_PD, tiles_TSW[(at - near) // WIDTH].ctypes.data, score_PL[p:, at:])
    leave(query_PD)


@inner
def _softmax(score_L: Array, low: int, high: int, scale: np.float32, share_L: Array) -> None:
    """Of entries `low .. high - 1`; the others' share is zero."""
    seen_L, seen_share_L = score_L[low:high], share_L[low:high]  # for all the compiler knows, an index may be negative
    order = _ordered(_LOWEST)
    for at in range(len(seen_L)):
        order = max(order, _ordered(seen_L[at]))
    most, total = np.int32(_flipped(order)).view(np.float32), np.float32(0)
    for at in range(len(seen_L)):
        value = exp((seen_L[at] - most) * scale)
        seen_L[at] = value
        total += value
    share = np.float32(1) / total
    for at in range(len(seen_L)):
        seen_share_L[at] = narrow(seen_L[at] * share, share_L)
    share_L[:low] = 0
    share_L[high:] = 0


@inner
def _ordered(value: np.float32) -> np.int32:
    """A float32's bits as a whole number in the same order: vectors compare those, but floats one by one."""
    return _flipped(np.float32(value).view(np.int32))


@inner
def _flipped(bits: np.int32) -> np.int32:
    """There, and back again."""
    return np.int32(bits ^ (np.int32(bits >> np.int32(31)) & np.int32(0x7FFFFFFF)))


@apart
def _mix(share_PL: Array, values_LD: Array, mixed_PD: Array) -> None:
    """The values' mean by their shares, which are zero beyond the last value."""
    size, at_once, num_ready = values_LD.shape[1], rows_at_once(share_PL), 0
    tile_SW = room(1 + _NEAR * share_PL.itemsize // 4, WIDTH, mixed_PD).view(np.uint32)
    tile_SW[:] = 0  # also where no value is: a share of nothing is nothing of any number, but not of others
    part_PW = room(at_once, WIDTH, mixed_PD)
    mixed_PD[:] = 0
    for near in range(0, share_PL.shape[1], _NEAR):
        near_share_PL, near_values_LD = share_PL[:, near : near + _NEAR], values_LD[near : near + _NEAR]
        for d in range(0, size, WIDTH):
            _lay_out(near_values_LD, d, tile_SW[1:])
            for p in range(0, len(share_PL), at_once):
                some_PL = near_share_PL[p : p + at_once]
                num_ready = ready(some_PL, num_ready)
                sums(some_PL, tile_SW.ctypes.data, part_PW)
                outputs.add(part_PW, mixed_PD[p : p + len(some_PL), d : d + WIDTH])
    leave(share_PL)


def _lay_out(values_LD: Array, start: int, tile_SW: Array) -> None:
    """Positions become steps, of elements from `start` on."""
    raise NotImplementedError("compiled only")  # the overload below takes its place


@overload(_lay_out)
def _lay_out_compiled(values_LD, start, tile_SW):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202 - see `bits`
    if isinstance(values_LD.dtype, types.Float):
        return _lay_out_each
    return _lay_out_pairs


def _lay_out_each(values_LD, start, tile_SW):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202 - as above
    for at in range(len(values_LD)):
        value_W, step_W = values_LD[at, start : start + WIDTH], tile_SW[at]
        for w in range(len(value_W)):
            step_W[w] = np.float32(value_W[w]).view(np.uint32)


def _lay_out_pairs(values_LD, start, tile_SW):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202 - as above
    part_LW = values_LD[:, start : start + WIDTH]
    interleave(part_LW, tile_SW)
    if len(part_LW) % 2:
        for w in range(part_LW.shape[1]):
            tile_SW[len(part_LW) // 2, w] = part_LW[-1, w]
