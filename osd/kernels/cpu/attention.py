"""Attention over the slot cache as two tile products, for the queries of one row that share a key head.

Keys and values are stored as tiles (`osd.kernels.cpu.tiled_cache`): a tile of 32 keys yields 32 scores, as a tile of
weights yields 32 outputs, and a tile of values yields 32 elements of the result. Tiles are read once, in order. The
reference is `osd.kernels.reference.attention.SdpaAttention`.

Shapes: Q new positions, L positions attended to, N query heads, M key/value heads, G = N / M, P = Q * G, X = N + 2M,
D head size; C, W, H, K and T of the cache.
"""

from __future__ import annotations

import numpy as np

from osd.kernels.cpu.bits import Array, compiled, empty_rows, exp, inlined, narrow, widen
from osd.kernels.cpu.products.tile import ready, release_registers, rows_at_once, sums
from osd.kernels.cpu.products.tiling import STEP_BYTES, WIDTH
from osd.kernels.cpu.rows import norm

_LOWEST = np.float32(-1e30)
"""Below every score; used for minus infinity, which `fastmath` does not support."""
_NEAR = 4
"""Number of key blocks that stay in the L1 cache."""
_FLOATS: Array = np.empty(0, np.float32)


@inlined
def keep(
    heads_QXD: Array,
    cos_LD: Array,
    sin_LD: Array,
    key_norm_D: Array,
    eps: np.float32,
    keys_MCKW: Array,
    values_MHTW: Array,
    key_head: int,
    start: int,
) -> None:
    """Write one key head's new keys, after rotary embedding, and new values from position `start` on."""
    num_key_heads = len(keys_MCKW)
    num_heads = heads_QXD.shape[1] - 2 * num_key_heads
    keys_CKW, values_HTW = keys_MCKW[key_head], values_MHTW[key_head]
    key_D = np.empty_like(heads_QXD[0, 0])
    key_K = key_D.view(np.uint32)
    for q in range(len(heads_QXD)):
        at = start + q
        known = min(at, len(cos_LD) - 1)  # padding may lie beyond the model's positions
        _turned(heads_QXD[q, num_heads + key_head], cos_LD[known], sin_LD[known], key_norm_D, eps, key_D)
        block_KW = keys_CKW[at // WIDTH]
        for k in range(len(key_K)):
            block_KW[k, at % WIDTH] = key_K[k]
        _keep_value(heads_QXD[q, num_heads + num_key_heads + key_head], values_HTW, at)
    # Zero the rest of the last block: masked scores have weight 0, but 0 times NaN or infinity would be NaN.
    per_step = STEP_BYTES // heads_QXD.itemsize
    high = start + len(heads_QXD)
    for h in range(len(values_HTW)):
        for t in range((high + per_step - 1) // per_step, num_blocks(high) * WIDTH // per_step):
            for w in range(WIDTH):
                values_HTW[h, t, w] = 0


@inlined
def _keep_value(value_D: Array, values_HTW: Array, at: int) -> None:
    """Write one value. Where a step holds two bfloat16, writing the first zeroes the second."""
    for h in range(len(values_HTW)):
        part_W = value_D[h * WIDTH : (h + 1) * WIDTH]
        if value_D.itemsize == STEP_BYTES:
            for w in range(len(part_W)):
                values_HTW[h, at, w] = np.float32(part_W[w]).view(np.uint32)
        elif at % 2 == 0:
            for w in range(len(part_W)):
                values_HTW[h, at // 2, w] = np.uint32(part_W[w])
        else:
            for w in range(len(part_W)):
                first = np.uint32(values_HTW[h, at // 2, w] & np.uint32(0xFFFF))
                values_HTW[h, at // 2, w] = first | np.uint32(np.uint32(part_W[w]) << np.uint32(16))


@inlined
def num_blocks(num_positions: int) -> int:
    """The number of blocks that hold these positions."""
    return (num_positions + WIDTH - 1) // WIDTH


@inlined
def _turned(head_D: Array, cos_D: Array, sin_D: Array, norm_D: Array, eps: np.float32, out_D: Array) -> None:
    """Normalise a head where the model does, then apply rotary embedding; the sines are signed."""
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


@inlined
def ranking(
    heads_QXD: Array,
    cos_LD: Array,
    sin_LD: Array,
    query_norm_D: Array,
    eps: np.float32,
    keys_MCKW: Array,
    values_MHTW: Array,
    key_head: int,
    start: int,
    first: int,
    reach: int,
    scale: np.float32,
    out_QND: Array,
) -> None:
    """Attention of one key head's queries, from position `start` on, to positions from `first` on within `reach`."""
    num_new, num_heads, size = out_QND.shape
    group = num_heads // len(keys_MCKW)
    query_PD = empty_rows(num_new * group, size, heads_QXD)
    for p in range(len(query_PD)):
        at = min(start + p // group, len(cos_LD) - 1)
        head_D = heads_QXD[p // group, key_head * group + p % group]
        _turned(head_D, cos_LD[at], sin_LD[at], query_norm_D, eps, query_PD[p])
    first_block = max(first, start - reach + 1, 0) // WIDTH
    low = first_block * WIDTH
    keys_CKW = keys_MCKW[key_head, first_block : num_blocks(start + num_new)]
    score_PL = empty_rows(len(query_PD), len(keys_CKW) * WIDTH, _FLOATS)
    _scores(query_PD, keys_CKW, score_PL)
    share_PL = empty_rows(len(query_PD), score_PL.shape[1], heads_QXD)
    for p in range(len(query_PD)):
        at = start + p // group
        _softmax(score_PL[p], max(first, at - reach + 1, 0) - low, at + 1 - low, scale, share_PL[p])
    values_HTW = values_MHTW[key_head, :, low * heads_QXD.itemsize // STEP_BYTES :]
    mixed_PD = empty_rows(len(query_PD), len(values_HTW) * WIDTH, _FLOATS)
    _mix(share_PL, values_HTW, mixed_PD)
    for p in range(len(query_PD)):
        out_D = out_QND[p // group, key_head * group + p % group]
        for d in range(size):
            out_D[d] = narrow(mixed_PD[p, d], out_D)


@compiled
def _scores(query_PD: Array, keys_CKW: Array, score_PL: Array) -> None:
    """The dot products of all queries and keys; scores beyond the last key are undefined."""
    at_once, num_ready, zeros_W = rows_at_once(query_PD), 0, np.zeros(WIDTH, np.float32)
    for near in range(0, len(keys_CKW), _NEAR):
        for p in range(0, len(query_PD), at_once):
            some_PD = query_PD[p : p + at_once]
            num_ready = ready(some_PD, num_ready)
            for c in range(near, min(near + _NEAR, len(keys_CKW))):
                steps = keys_CKW[c].ctypes.data
                sums(some_PD, zeros_W.ctypes.data, steps, score_PL[p:, c * WIDTH :], steps)
    release_registers(query_PD)


@inlined
def _softmax(score_L: Array, low: int, high: int, scale: np.float32, share_L: Array) -> None:
    """Softmax of the entries `low .. high - 1`; the others become zero."""
    seen_L, seen_share_L = score_L[low:high], share_L[low:high]  # plain slices: indices might be negative to LLVM
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


@inlined
def _ordered(value: np.float32) -> np.int32:
    """A float32's bits as an int32 of the same order; integer maxima are vectorised, float ones are not."""
    return _flipped(np.float32(value).view(np.int32))


@inlined
def _flipped(bits: np.int32) -> np.int32:
    """Map a float's bits to that order, or back."""
    return np.int32(bits ^ (np.int32(bits >> np.int32(31)) & np.int32(0x7FFFFFFF)))


@compiled
def _mix(share_PL: Array, values_HTW: Array, mixed_PD: Array) -> None:
    """The sum of the values, weighted by their softmax shares."""
    at_once, num_ready, zeros_W = rows_at_once(share_PL), 0, np.zeros(WIDTH, np.float32)
    for p in range(0, len(share_PL), at_once):
        some_PL = share_PL[p : p + at_once]
        num_ready = ready(some_PL, num_ready)
        for h in range(len(values_HTW)):
            steps = values_HTW[h].ctypes.data
            sums(some_PL, zeros_W.ctypes.data, steps, mixed_PD[p:, h * WIDTH :], steps)
    release_registers(share_PL)
