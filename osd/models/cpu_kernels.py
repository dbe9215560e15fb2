"""What lies between a decoding pass's matrix products, compiled for a CPU: norm, gate, attention over the slot cache.

At a few positions a pass, torch's own operations cost more to call than to run. These three take the place of some
fifteen a layer (docs/decisions.md has the measurements), and attention reads each row as far as that row goes, not as
far as the longest one. Plain loops, compiled by numba; torch's operations (`osd.models.row_ops`, `osd.models.fused`)
are the reference they are tested against.

bfloat16, which numba does not know, is handled as the upper half of a float32, in arrays of uint16.

Shapes: R rows (tokens), H their size, B rows of the cache, Q new positions of each, L positions seen, N query heads,
M key/value heads, G = N / M, P = Q * G, X = N + 2M, Y = 2M, D head size, S slots.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange, types
from numba.extending import overload
from numpy.typing import NDArray

Array = NDArray[Any]

# numpy's error model: a check for division by zero would keep loops from being vectorised, and garbage must not raise.
_inner = njit(fastmath=True, error_model="numpy")
_kernel = njit(cache=True, error_model="numpy")
_parallel_kernel = njit(cache=True, error_model="numpy", parallel=True)
_LOWEST = np.float32(-1e30)
"""Below every score; fast maths knows no infinity."""


def _widen(stored: Any) -> np.float32:
    raise NotImplementedError("compiled only")


@overload(_widen, inline="always")
def _widen_compiled(stored):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202 - lambdas have no types
    if isinstance(stored, types.Float):
        return lambda stored: stored
    return lambda stored: np.uint32(np.uint32(stored) << np.uint32(16)).view(np.float32)


def _narrow(value: Any, like: Array) -> Any:
    raise NotImplementedError("compiled only")


@overload(_narrow, inline="always")
def _narrow_compiled(value, like):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202 - as above
    """To the type of the array's elements."""
    if isinstance(like.dtype, types.Float):
        return lambda value, like: value
    return lambda value, like: _rounded(value)


@njit(inline="always")
def _rounded(value: np.float32) -> Any:
    """To bfloat16's bits: to nearest, ties to even."""
    bits = np.float32(value).view(np.uint32)
    return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))


@njit(fastmath=True, error_model="numpy", inline="always")
def _exp(x: np.float32) -> Any:
    """To float32's accuracy, without a branch: 2 to the whole part by its exponent bits, the rest by a polynomial."""
    y = min(max(x, np.float32(-87.0)), np.float32(88.0)) * np.float32(1.4426950408889634)
    whole = np.floor(y + np.float32(0.5))
    rest = y - whole
    power = np.float32(1.3333558e-3)
    power = power * rest + np.float32(9.6181291e-3)
    power = power * rest + np.float32(5.5504109e-2)
    power = power * rest + np.float32(2.4022651e-1)
    power = power * rest + np.float32(6.9314718e-1)
    power = power * rest + np.float32(1.0)
    return np.int32((np.int32(whole) + np.int32(127)) << np.int32(23)).view(np.float32) * power


@_inner
def _norm_row(x_H: Array, weight_H: Array, eps: np.float32, out_H: Array) -> None:
    size = len(x_H)
    squares = np.float32(0)
    for i in range(size):
        value = _widen(x_H[i])
        squares += value * value
    scale = np.float32(1) / np.sqrt(squares / np.float32(size) + np.float32(eps))
    for i in range(size):
        out_H[i] = _narrow(_widen(x_H[i]) * scale * _widen(weight_H[i]), out_H)


@_kernel
def rms_norm(x_RH: Array, weight_H: Array, eps: np.float32, out_RH: Array) -> None:
    """`x / sqrt(mean(x²) + eps) * weight`, by row."""
    for row in range(len(x_RH)):
        _norm_row(x_RH[row], weight_H, eps, out_RH[row])


@_parallel_kernel
def rms_norm_parallel(x_RH: Array, weight_H: Array, eps: np.float32, out_RH: Array) -> None:
    """The same, on several cores."""
    for row in prange(len(x_RH)):
        _norm_row(x_RH[row], weight_H, eps, out_RH[row])


@_inner
def _gate_row(gate_up_I: Array, out_I: Array) -> None:
    up_I = gate_up_I[len(out_I) :]  # a sum as an index might be negative, for all that the compiler knows
    for i in range(len(out_I)):
        gate = _widen(gate_up_I[i])
        out_I[i] = _narrow(gate / (np.float32(1) + _exp(-gate)) * _widen(up_I[i]), out_I)


@_kernel
def silu_gate(gate_up_RI: Array, out_RI: Array) -> None:
    """`silu(gate) * up`, by row; the input holds all gates, then all ups."""
    for row in range(len(out_RI)):
        _gate_row(gate_up_RI[row], out_RI[row])


@_parallel_kernel
def silu_gate_parallel(gate_up_RI: Array, out_RI: Array) -> None:
    """The same, on several cores."""
    for row in prange(len(out_RI)):
        _gate_row(gate_up_RI[row], out_RI[row])


@_inner
def _turned(head_D: Array, cos_D: Array, sin_D: Array, out_D: Array) -> None:
    """A head turned by its position's angles; the sines are signed (see `osd.models.rotary`)."""
    half = len(head_D) // 2
    first_D, second_D, cos2_D, sin2_D, out2_D = head_D[:half], head_D[half:], cos_D[half:], sin_D[half:], out_D[half:]
    for i in range(half):
        first, second = _widen(first_D[i]), _widen(second_D[i])
        out_D[i] = _narrow(first * cos_D[i] + second * sin_D[i], out_D)
        out2_D[i] = _narrow(second * cos2_D[i] + first * sin2_D[i], out_D)


@_inner
def _scores(query_PD: Array, keys_LD: Array, score_PL: Array) -> None:
    """Four keys at a time: a query is read once for them, and their sums do not wait for each other."""
    num_queries, size = query_PD.shape
    four = np.empty((4, size), np.float32)
    for at in range(0, score_PL.shape[1], 4):
        for i in range(4):
            for d in range(size):
                four[i, d] = _widen(keys_LD[at + i, d])
        for p in range(num_queries):
            s0 = s1 = s2 = s3 = np.float32(0)
            for d in range(size):
                value = query_PD[p, d]
                s0 += value * four[0, d]
                s1 += value * four[1, d]
                s2 += value * four[2, d]
                s3 += value * four[3, d]
            score_PL[p, at], score_PL[p, at + 1], score_PL[p, at + 2], score_PL[p, at + 3] = s0, s1, s2, s3


@_inner
def _softmax(score_L: Array, low: int, high: int) -> None:
    """Of entries `low .. high - 1`, in place; the others become zero."""
    most = _LOWEST
    for at in range(low, high):
        most = max(most, score_L[at])
    total = np.float32(0)
    for at in range(low, high):
        value = _exp(score_L[at] - most)
        score_L[at] = value
        total += value
    share = np.float32(1) / total
    for at in range(low, high):
        score_L[at] *= share
    score_L[:low] = 0
    score_L[high:] = 0


@_inner
def _mix(score_PL: Array, values_LD: Array, out_PD: Array) -> None:
    """The values' mean by the scores; four at a time, as in `_scores`."""
    num_queries, size = out_PD.shape
    four = np.empty((4, size), np.float32)
    out_PD[:] = 0
    for at in range(0, score_PL.shape[1], 4):
        for i in range(4):
            for d in range(size):
                four[i, d] = _widen(values_LD[at + i, d])
        for p in range(num_queries):
            s0, s1, s2, s3 = score_PL[p, at], score_PL[p, at + 1], score_PL[p, at + 2], score_PL[p, at + 3]
            for d in range(size):
                out_PD[p, d] += s0 * four[0, d] + s1 * four[1, d] + s2 * four[2, d] + s3 * four[3, d]


@_inner
def _attend_head(
    heads_QXD: Array,
    cos_LD: Array,
    sin_LD: Array,
    cache_YLD: Array,
    key_head: int,
    start: int,
    first: int,
    reach: int,
    scale: np.float32,
    out_QND: Array,
) -> None:
    """One row's queries of one key head: keep the new keys and values, then look back."""
    num_new, num_heads, size = out_QND.shape
    num_key_heads = len(cache_YLD) // 2
    keys_LD, values_LD = cache_YLD[key_head], cache_YLD[num_key_heads + key_head]
    group = num_heads // num_key_heads
    query_PD = np.empty((num_new * group, size), np.float32)
    for q in range(num_new):
        at = start + q
        known = min(at, len(cos_LD) - 1)  # padding may stand beyond the positions that the model knows
        _turned(heads_QXD[q, num_heads + key_head], cos_LD[known], sin_LD[known], keys_LD[at])
        values_LD[at] = heads_QXD[q, num_heads + num_key_heads + key_head]
        for g in range(group):
            _turned(heads_QXD[q, key_head * group + g], cos_LD[known], sin_LD[known], query_PD[q * group + g])
    query_PD *= scale
    low = max(first, start - reach + 1) // 4 * 4  # the cache's length is a multiple of four
    score_PL = np.empty((num_new * group, (start + num_new - low + 3) // 4 * 4), np.float32)
    _scores(query_PD, keys_LD[low:], score_PL)
    for p in range(num_new * group):
        at = start + p // group
        _softmax(score_PL[p], max(first, at - reach + 1) - low, at + 1 - low)
    _mix(score_PL, values_LD[low:], query_PD)
    for p in range(num_new * group):
        for d in range(size):
            out_QND[p // group, key_head * group + p % group, d] = _narrow(query_PD[p, d], out_QND)


@_inner
def _attend_task(
    task: int,
    heads_BQXD: Array,
    cos_LD: Array,
    sin_LD: Array,
    cache_SYLD: Array,
    first_row: int,
    starts_B: Array,
    firsts_B: Array,
    reach: int,
    scale: np.float32,
    out_BQND: Array,
) -> None:
    num_key_heads = cache_SYLD.shape[1] // 2
    b, m = task // num_key_heads, task % num_key_heads
    start, first, cache_YLD = starts_B[b], firsts_B[b], cache_SYLD[first_row + b]
    _attend_head(heads_BQXD[b], cos_LD, sin_LD, cache_YLD, m, start, first, reach, scale, out_BQND[b])


@_kernel
def attend(
    heads_BQXD: Array,
    cos_LD: Array,
    sin_LD: Array,
    cache_SYLD: Array,
    first_row: int,
    starts_B: Array,
    firsts_B: Array,
    reach: int,
    scale: np.float32,
    out_BQND: Array,
) -> None:
    """Rotate the new queries and keys, keep keys and values, and let each query look back.

    Args:
        heads_BQXD: projected queries, keys, values.
        cos_LD: cosines by position.
        sin_LD: signed sines by position.
        cache_SYLD: the layer's cache: all keys' heads, then all values'.
        first_row: the row of `heads_BQXD[0]`.
        starts_B: where the new positions begin.
        firsts_B: the first position that may be looked at.
        reach: how many positions back a query looks, with its own.
        scale: of the scores.
        out_BQND: is written.
    """
    for task in range(len(heads_BQXD) * (cache_SYLD.shape[1] // 2)):
        _attend_task(
            task, heads_BQXD, cos_LD, sin_LD, cache_SYLD, first_row, starts_B, firsts_B, reach, scale, out_BQND
        )


@_parallel_kernel
def attend_parallel(
    heads_BQXD: Array,
    cos_LD: Array,
    sin_LD: Array,
    cache_SYLD: Array,
    first_row: int,
    starts_B: Array,
    firsts_B: Array,
    reach: int,
    scale: np.float32,
    out_BQND: Array,
) -> None:
    """The same, on several cores."""
    for task in prange(len(heads_BQXD) * (cache_SYLD.shape[1] // 2)):
        _attend_task(
            task, heads_BQXD, cos_LD, sin_LD, cache_SYLD, first_row, starts_B, firsts_B, reach, scale, out_BQND
        )
