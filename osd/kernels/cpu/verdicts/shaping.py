"""From a row of logits to the distribution that tokens are drawn from; the reference is `osd.verify.shaping`.

Shapes: V vocabulary, N candidates.
"""

from __future__ import annotations

import numpy as np

from osd.kernels.cpu.arguments import Shapes
from osd.kernels.cpu.bits import LOG2_E, Array, compiled_fast, exp2_below, is_finite, widen
from osd.kernels.cpu.verdicts.masses import CHUNK, Masses, add_up, sum_from

_PART = 32
"""Size of the parts of a chunk that are searched only if they contain a candidate."""
_CANDIDATES = 2048
"""Most candidates that are collected for filters; with more, filters go over the whole vocabulary."""
_LIKELY = np.float32(1e-2)
"""Top-p first considers tokens of at least this share of the mass; if those are too few, a tenth of it, and so on."""
_NEVER = np.float32(-115)
"""Exponents of 2 below this give weight 0: such a token cannot be drawn, and `exp2_below` never returns 0."""
_TWO_BITS = np.int64(0x40000000)


@compiled_fast
def shape(logits_V: Array, most: np.float32, shapes: Shapes, b: int, masses: Masses) -> np.float32:
    """The distribution after a row's temperature, min-p, top-k and top-p; of equal values at a cut, the first stay.

    Args:
        logits_V: bfloat16.
        most: the largest logit; if it is not finite, all masses become NaN.
        shapes: shaping parameters of all rows.
        b: the row.
        masses: output.

    Returns:
        The sum of the masses.
    """
    values_V, scale = masses.values_V, LOG2_E / shapes.temperature_B[b]
    if not is_finite(most):
        values_V[:] = np.nan
        return add_up(masses)
    for c in range(len(masses.sums_C)):
        chunk, values = logits_V[c * CHUNK : (c + 1) * CHUNK], values_V[c * CHUNK : (c + 1) * CHUNK]
        total, greatest = np.float32(0), np.int32(0)
        for i in range(len(chunk)):
            power = (widen(chunk[i]) - most) * scale
            value = exp2_below(power) if power > _NEVER else np.float32(0)
            values[i] = value
            total += value
            greatest = max(greatest, _bits(value))
        masses.sums_C[c], masses.most_C[c] = total, greatest
    floor, top_k, top_p = shapes.min_p_B[b], shapes.top_k_B[b], shapes.top_p_B[b]  # the largest weight is 1
    if top_k < len(values_V):
        floor = _kth(masses, floor, top_k)
    if floor > 0 or top_p < np.float32(1):
        _keep(masses, floor, top_p)
    return np.float32(masses.sums_C.sum())


@compiled_fast
def _kth(masses: Masses, floor: np.float32, top_k: int) -> np.float32:
    """The k-th largest weight, but at least the floor."""
    limit = np.float32(top_k)
    if top_k <= len(masses.most_C):  # the k-th largest chunk maximum is a lower bound
        floor = _bound(masses.most_C.view(np.float32), floor, limit, False)
    ids_N, values_N = np.empty(_CANDIDATES, np.int32), np.empty(_CANDIDATES, np.float32)
    num = _collect(masses, floor, ids_N, values_N)
    return _bound(values_N[:num] if num <= _CANDIDATES else masses.values_V, floor, limit, False)


@compiled_fast
def _keep(masses: Masses, floor: np.float32, top_p: np.float32) -> None:
    """Keep the smallest set of largest masses, all at least `floor`, whose share of the mass reaches `top_p`.

    Top-p: Holtzman et al. 2020, arXiv 1904.09751.
    """
    total = _mass(masses, floor)
    limit = np.float32(2) * total  # never reached
    if top_p < np.float32(1):
        limit, likely = top_p * total, _LIKELY * total
        # All tokens below this floor together have less mass than top-p leaves out.
        floor = max(floor, np.float32(0.99) * (total - limit) / np.float32(len(masses.values_V)))
        while likely > floor and _mass(masses, likely) <= limit:
            likely *= np.float32(0.1)
        floor = max(floor, likely)
    ids_N, values_N = np.empty(_CANDIDATES, np.int32), np.empty(_CANDIDATES, np.float32)
    num = _collect(masses, floor, ids_N, values_N)
    if num <= _CANDIDATES:
        _cut(values_N[:num], floor, limit)
        _put_back(masses, ids_N[:num], values_N[:num])
    else:
        _cut(masses.values_V, floor, limit)
        add_up(masses)


@compiled_fast
def _put_back(masses: Masses, ids_N: Array, values_N: Array) -> None:
    """Set the masses of these ids, in ascending order, and zero all others."""
    last = -1
    masses.sums_C[:] = 0
    for n in range(len(ids_N)):
        c = ids_N[n] // CHUNK
        if c != last:
            masses.values_V[c * CHUNK : (c + 1) * CHUNK] = 0
            last = c
        masses.values_V[ids_N[n]] = values_N[n]
        masses.sums_C[c] += values_N[n]


@compiled_fast
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


@compiled_fast
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


@compiled_fast
def _above(values_N: Array, bound: np.float32, is_mass: bool) -> np.float32:
    """The sum, or the number, of the values greater than `bound`."""
    total = np.float32(0)
    for i in range(len(values_N)):
        amount = values_N[i] if is_mass else np.float32(1)
        total += amount if values_N[i] > bound else np.float32(0)
    return total


@compiled_fast
def _mass(masses: Masses, floor: np.float32) -> np.float32:
    """The sum of the masses that are at least `floor`."""
    if floor <= 0:
        return np.float32(masses.sums_C.sum())
    total, least = np.float32(0), _bits(floor)
    for c in range(len(masses.most_C)):
        if masses.most_C[c] >= least:
            total += sum_from(masses.values_V[c * CHUNK : (c + 1) * CHUNK], floor)
    return total


@compiled_fast
def _collect(masses: Masses, floor: np.float32, ids_N: Array, values_N: Array) -> int:
    """Collect the masses that are at least `floor`, in order; returns their number, or N + 1 if more than N."""
    num, values_V, bits_V, least = 0, masses.values_V, masses.values_V.view(np.int32), _bits(floor)
    for c in range(len(masses.most_C)):
        if masses.most_C[c] >= least:
            for start in range(c * CHUNK, min((c + 1) * CHUNK, len(values_V)), _PART):
                if _most(bits_V[start : start + _PART]) >= least:
                    for i in range(start, min(start + _PART, len(values_V))):
                        if values_V[i] >= floor:
                            if num == len(ids_N):
                                return num + 1
                            ids_N[num], values_N[num] = i, values_V[i]
                            num += 1
    return num


@compiled_fast
def _most(bits_N: Array) -> np.int32:
    """The maximum, by bits: those of positive floats have the same order, and integer maxima are vectorised."""
    most = np.int32(0)
    for n in range(len(bits_N)):
        most = max(most, bits_N[n])
    return most


@compiled_fast
def _bits(value: np.float32) -> np.int32:
    return np.int32(np.float32(value).view(np.int32))
