"""From a row of logits to the distribution that tokens are drawn from; the reference is `osd.verify.shaping`.

Shapes: V vocabulary, N candidates.
"""

from __future__ import annotations

import numpy as np

from osd.kernels.cpu.arguments import Shapes
from osd.kernels.cpu.bits import LOG2_E, Array, exp2_below, is_finite, loose, widen
from osd.kernels.cpu.verdicts.masses import CHUNK, Weights, add_up, sum_from

_PART = 32
"""Size of the parts of a chunk that are searched only if they contain a candidate."""
_CANDIDATES = 2048
"""Most candidates that are collected for filters; with more, filters go over the whole vocabulary."""
_LIKELY = np.float32(1e-2)
"""Top-p first considers tokens of at least this share of the mass; if those are too few, a tenth of it, and so on."""
_NEVER = np.float32(-115)
"""Exponents of 2 below this give weight 0: such a token cannot be drawn, and `exp2_below` never returns 0."""
_TWO_BITS = np.int64(0x40000000)


@loose
def shape(logits_V: Array, most: np.float32, shapes: Shapes, b: int, weights: Weights) -> np.float32:
    """The distribution after a row's temperature, min-p, top-k and top-p; of equal values at a cut, the first stay.

    Args:
        logits_V: bfloat16.
        most: the largest logit; if it is not finite, all weights become NaN.
        shapes: shaping parameters of all rows.
        b: the row.
        weights: output.

    Returns:
        The sum of the weights.
    """
    values_V, scale = weights.values_V, LOG2_E / shapes.temperature_B[b]
    if not is_finite(most):
        values_V[:] = np.nan
        return add_up(weights)
    for c in range(len(weights.sums_C)):
        chunk, values = logits_V[c * CHUNK : (c + 1) * CHUNK], values_V[c * CHUNK : (c + 1) * CHUNK]
        total, greatest = np.float32(0), np.int32(0)
        for i in range(len(chunk)):
            power = (widen(chunk[i]) - most) * scale
            value = exp2_below(power) if power > _NEVER else np.float32(0)
            values[i] = value
            total += value
            greatest = max(greatest, _bits(value))
        weights.sums_C[c], weights.most_C[c] = total, greatest
    floor, top_k, top_p = shapes.min_p_B[b], shapes.top_k_B[b], shapes.top_p_B[b]  # the largest weight is 1
    if top_k < len(values_V):
        floor = _kth(weights, floor, top_k)
    if floor > 0 or top_p < np.float32(1):
        _keep(weights, floor, top_p)
    return np.float32(weights.sums_C.sum())


@loose
def _kth(weights: Weights, floor: np.float32, top_k: int) -> np.float32:
    """The k-th largest weight, but at least the floor."""
    limit = np.float32(top_k)
    if top_k <= len(weights.most_C):  # the k-th largest chunk maximum is a lower bound
        floor = _bound(weights.most_C.view(np.float32), floor, limit, False)
    ids_N, values_N = np.empty(_CANDIDATES, np.int32), np.empty(_CANDIDATES, np.float32)
    num = _collect(weights, floor, ids_N, values_N)
    return _bound(values_N[:num] if num <= _CANDIDATES else weights.values_V, floor, limit, False)


@loose
def _keep(weights: Weights, floor: np.float32, top_p: np.float32) -> None:
    """Keep the smallest set of largest weights, all at least `floor`, whose share of the mass reaches `top_p`.

    Top-p: Holtzman et al. 2020, arXiv 1904.09751.
    """
    total = _mass(weights, floor)
    limit = np.float32(2) * total  # never reached
    if top_p < np.float32(1):
        limit, likely = top_p * total, _LIKELY * total
        # All tokens below this floor together have less mass than top-p leaves out.
        floor = max(floor, np.float32(0.99) * (total - limit) / np.float32(len(weights.values_V)))
        while likely > floor and _mass(weights, likely) <= limit:
            likely *= np.float32(0.1)
        floor = max(floor, likely)
    ids_N, values_N = np.empty(_CANDIDATES, np.int32), np.empty(_CANDIDATES, np.float32)
    num = _collect(weights, floor, ids_N, values_N)
    if num <= _CANDIDATES:
        _cut(values_N[:num], floor, limit)
        _put_back(weights, ids_N[:num], values_N[:num])
    else:
        _cut(weights.values_V, floor, limit)
        add_up(weights)


@loose
def _put_back(weights: Weights, ids_N: Array, values_N: Array) -> None:
    """Set the weights of these ids, in ascending order, and zero all others."""
    last = -1
    weights.sums_C[:] = 0
    for n in range(len(ids_N)):
        c = ids_N[n] // CHUNK
        if c != last:
            weights.values_V[c * CHUNK : (c + 1) * CHUNK] = 0
            last = c
        weights.values_V[ids_N[n]] = values_N[n]
        weights.sums_C[c] += values_N[n]


@loose
def _cut(values_N: Array, floor: np.float32, limit: np.float32) -> None:
    """Zero all but the smallest set of largest values that reaches a mass; of equal ones the first are kept."""
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


@loose
def _bound(values_N: Array, floor: np.float32, limit: np.float32, is_mass: bool) -> np.float32:
    """The least value, at most 2, with less than `limit` above it (mass or count), by bisection of float32's bits."""
    low, high = np.int64(_bits(floor)), _TWO_BITS
    while low < high:
        middle = (low + high) // 2
        if _above(values_N, np.int32(middle).view(np.float32), is_mass) < limit:
            high = middle
        else:
            low = middle + 1
    return np.int32(low).view(np.float32)


@loose
def _above(values_N: Array, bound: np.float32, is_mass: bool) -> np.float32:
    """The sum, or the number, of the values greater than `bound`."""
    total = np.float32(0)
    for i in range(len(values_N)):
        amount = values_N[i] if is_mass else np.float32(1)
        total += amount if values_N[i] > bound else np.float32(0)
    return total


@loose
def _mass(weights: Weights, floor: np.float32) -> np.float32:
    """The sum of the weights that are at least `floor`."""
    if floor <= 0:
        return np.float32(weights.sums_C.sum())
    total, least = np.float32(0), _bits(floor)
    for c in range(len(weights.most_C)):
        if weights.most_C[c] >= least:
            total += sum_from(weights.values_V[c * CHUNK : (c + 1) * CHUNK], floor)
    return total


@loose
def _collect(weights: Weights, floor: np.float32, ids_N: Array, values_N: Array) -> int:
    """Collect the weights that are at least `floor`, in order; returns their number, or N + 1 if more than N."""
    num, values_V, bits_V, least = 0, weights.values_V, weights.values_V.view(np.int32), _bits(floor)
    for c in range(len(weights.most_C)):
        if weights.most_C[c] >= least:
            for start in range(c * CHUNK, min((c + 1) * CHUNK, len(values_V)), _PART):
                if _most(bits_V[start : start + _PART]) >= least:
                    for i in range(start, min(start + _PART, len(values_V))):
                        if values_V[i] >= floor:
                            if num == len(ids_N):
                                return num + 1
                            ids_N[num], values_N[num] = i, values_V[i]
                            num += 1
    return num


@loose
def _most(bits_N: Array) -> np.int32:
    """The maximum, by bits: those of positive floats have the same order, and integer maxima are vectorised."""
    most = np.int32(0)
    for n in range(len(bits_N)):
        most = max(most, bits_N[n])
    return most


@loose
def _bits(value: np.float32) -> np.int32:
    return np.int32(np.float32(value).view(np.int32))
