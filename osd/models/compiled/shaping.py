"""From a row of logits to the distribution that is drawn from, and a draw: what `osd.sampling` does with tensors.

Shapes: V vocabulary, N of it looked at.
"""

from __future__ import annotations

import numpy as np

from osd.models.compiled.arguments import Shapes
from osd.models.compiled.bits import Array, exp, inner, is_finite, widen
from osd.models.compiled.highest import highest

_CHUNK = 128
_CANDIDATES = 2048
"""Tokens that top-p is decided among; where more may belong to it, the whole vocabulary is looked through."""
_LIKELY = np.float32(1e-4)
"""Of the whole: tokens that top-p is decided among where they are enough."""
_NEVER = np.float32(-80)
"""Logits so much below the greatest are those of tokens that cannot be drawn; `exp` has no zero."""
_TWO_BITS = np.int64(0x40000000)


@inner
def shape(logits_V: Array, shapes: Shapes, b: int, probs_V: Array) -> None:
    """The distribution after a row's temperature, min-p, top-k and top-p (of equal ones at its cut, the first).

    Of logits whose greatest is no number, NaN everywhere.
    """
    id_1, most_1 = np.empty(1, np.int32), np.empty(1, np.float32)
    highest(logits_V, id_1, most_1)
    if not is_finite(most_1[0]):
        probs_V[:] = np.nan
        return
    most, scale = most_1[0], np.float32(1) / shapes.temperature_B[b]
    for i in range(len(logits_V)):
        lower = (widen(logits_V[i]) - most) * scale
        probs_V[i] = exp(lower) if lower > _NEVER else np.float32(0)
    floor = shapes.min_p_B[b] * probs_V[id_1[0]]
    if shapes.top_k_B[b] < len(probs_V):
        floor = max(floor, _bound(probs_V, floor, np.float32(shapes.top_k_B[b]), False))
    total = sum_from(probs_V, floor)
    if shapes.top_p_B[b] < np.float32(1):
        _keep_mass(probs_V, floor, total, shapes.top_p_B[b])
        floor, total = np.float32(0), sum_from(probs_V, np.float32(0))
    for i in range(len(probs_V)):
        probs_V[i] = probs_V[i] / total if probs_V[i] >= floor else np.float32(0)


@inner
def draw(weights_V: Array, uniform: np.float32) -> int:
    """An index by inversion, from unnormalised weights with a positive sum; never one of weight 0."""
    total = np.float64(0)
    for start in range(0, len(weights_V), _CHUNK):
        total += sum_from(weights_V[start : start + _CHUNK], np.float32(0))
    threshold, below = np.float64(uniform) * total, np.float64(0)
    for start in range(0, len(weights_V), _CHUNK):
        chunk = weights_V[start : start + _CHUNK]
        part = np.float64(sum_from(chunk, np.float32(0)))
        if below + part > threshold:
            cumulated = below
            for i in range(len(chunk)):
                cumulated += np.float64(chunk[i])
                if chunk[i] > 0 and cumulated > threshold:
                    return start + i
        below += part
    last = len(weights_V) - 1  # only rounding leads here
    while last > 0 and weights_V[last] <= 0:
        last -= 1
    return last


@inner
def sum_from(values_N: Array, floor: np.float32) -> np.float32:
    """The sum of those that are no less."""
    total = np.float32(0)
    for i in range(len(values_N)):
        total += values_N[i] if values_N[i] >= floor else np.float32(0)
    return total


@inner
def _above(values_N: Array, bound: np.float32, is_mass: bool) -> np.float32:
    """The sum, or the number, of those that are greater."""
    total = np.float32(0)
    for i in range(len(values_N)):
        amount = values_N[i] if is_mass else np.float32(1)
        total += amount if values_N[i] > bound else np.float32(0)
    return total


@inner
def _bits(value: np.float32) -> np.int32:
    return np.int32(np.float32(value).view(np.int32))


@inner
def _bound(values_N: Array, floor: np.float32, limit: np.float32, is_mass: bool) -> np.float32:
    """The least value, up to 2, above which there is less than the limit: by bisection of float32's bits."""
    low, high = np.int64(_bits(floor)), _TWO_BITS
    while low < high:
        middle = (low + high) // 2
        if _above(values_N, np.int32(middle).view(np.float32), is_mass) < limit:
            high = middle
        else:
            low = middle + 1
    return np.int32(low).view(np.float32)


@inner
def _keep_mass(probs_V: Array, floor: np.float32, total: np.float32, top_p: np.float32) -> None:
    """Zero all but the fewest most likely tokens whose mass reaches top-p (Holtzman et al. 2020, arXiv 1904.09751)."""
    limit = top_p * total
    # Tokens less likely than this are together less than what top-p leaves out.
    floor = max(floor, np.float32(0.99) * (total - limit) / np.float32(len(probs_V)))
    ids_N, values_N = np.empty(_CANDIDATES, np.int64), np.empty(_CANDIDATES, np.float32)
    likely = max(floor, _LIKELY * total)
    num = _collect(probs_V, likely, ids_N, values_N)
    if num <= _CANDIDATES and sum_from(values_N[:num], likely) > limit:
        floor = likely  # enough by themselves, and found in a fraction of the time
    else:
        num = _collect(probs_V, floor, ids_N, values_N)
    if num <= _CANDIDATES:
        probs_V[:] = 0
        _cut(values_N[:num], floor, limit)
        for n in range(num):
            probs_V[ids_N[n]] = values_N[n]
    else:
        _cut(probs_V, floor, limit)


@inner
def _cut(values_N: Array, floor: np.float32, limit: np.float32) -> None:
    """Zero all but the fewest greatest that reach a mass; of equal ones, the first are kept."""
    least = _bound(values_N, floor, limit, True)
    missing = limit - _above(values_N, least, True)
    num_equal = 0
    for n in range(len(values_N)):
        num_equal += int(values_N[n] == least)
        values_N[n] = values_N[n] if values_N[n] >= least else np.float32(0)
    surplus, n = num_equal - max(int(np.ceil(missing / least)), 1), len(values_N) - 1
    while surplus > 0:
        if values_N[n] == least:
            values_N[n] = 0
            surplus -= 1
        n -= 1


@inner
def _collect(probs_V: Array, floor: np.float32, ids_N: Array, values_N: Array) -> int:
    """Those that are no less, in order; how many, or N + 1 where there are more than N."""
    num, bits_V, least = 0, probs_V.view(np.int32), _bits(floor)
    for start in range(0, len(probs_V), _CHUNK):
        chunk, bits = probs_V[start : start + _CHUNK], bits_V[start : start + _CHUNK]
        most = np.int32(0)
        for i in range(len(bits)):
            most = max(most, bits[i])  # of positive numbers these are in the same order, and vectors compare them
        if most < least:
            continue
        for i in range(len(chunk)):
            if chunk[i] >= floor:
                if num == len(ids_N):
                    return num + 1
                ids_N[num], values_N[num] = start + i, chunk[i]
                num += 1
    return num
