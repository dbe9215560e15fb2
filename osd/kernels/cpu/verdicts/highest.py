"""The K largest of a row of bfloat16 logits, and the logarithm of the sum of exponentials, without copying the row.

The reference is `osd.kernels.reference.logits`. Shapes: V vocabulary, K greatest, R rows.
"""

from __future__ import annotations

import numpy as np

from osd.kernels.cpu.arguments import Ranking
from osd.kernels.cpu.bits import Array, compiled, exp_below, inlined, widen

_CHUNK = 128
_PART = 32
"""Size of the parts of a chunk that are searched only if they contain a candidate."""
_SUMMED = 512
"""Terms that are added in float32 before the sum is added in float64."""
_LOWEST = np.int16(-32768)


@compiled
def highest(logits_V: Array, ids_K: Array, values_K: Array) -> None:
    """The K largest values with their indices, largest first; equal ones in order of index.

    A lower bound for them, the K-th largest of the chunks' maxima, allows most chunks to be skipped.
    """
    bits_V, last = logits_V.view(np.int16), len(ids_K) - 1
    most_C = np.empty((len(bits_V) + _CHUNK - 1) // _CHUNK, np.int16)
    for c in range(len(most_C)):
        most_C[c] = _most(bits_V[c * _CHUNK : (c + 1) * _CHUNK])
    order_K = np.full(len(ids_K), _below(most_C, len(ids_K)))
    ids_K[:] = 0
    for c in range(len(most_C)):
        if most_C[c] > order_K[last]:
            for start in range(c * _CHUNK, min((c + 1) * _CHUNK, len(bits_V)), _PART):
                part = bits_V[start : start + _PART]
                if _most(part) > order_K[last]:
                    for i in range(len(part)):
                        order = _flipped(part[i])
                        if order > order_K[last]:
                            _insert(order, start + i, ids_K, order_K)
    for k in range(len(values_K)):
        values_K[k] = widen(logits_V[ids_K[k]])


@inlined
def _most(bits_N: Array) -> np.int16:
    """The maximum."""
    most = _LOWEST
    for n in range(len(bits_N)):
        most = max(most, _flipped(bits_N[n]))
    return most


@inlined
def _below(most_C: Array, count: int) -> np.int16:
    """A value that at least `count` chunk maxima exceed, by bisection; the lowest value if there are fewer chunks."""
    low, high = int(_LOWEST), 32767
    while low < high:
        middle = (low + high + 1) // 2
        above = 0
        for c in range(len(most_C)):
            above += int(most_C[c] >= np.int16(middle))
        if above >= count:
            low = middle
        else:
            high = middle - 1
    return np.int16(max(low - 1, int(_LOWEST)))


@inlined
def _flipped(bits: np.int16) -> np.int16:
    """bfloat16's bits as int16 of the same order, of which a vector register holds twice as many."""
    return np.int16(bits ^ ((bits >> np.int16(15)) & np.int16(0x7FFF)))


@compiled
def _insert(order: np.int16, index: int, ids_K: Array, order_K: Array) -> None:
    """Insert a value into the sorted list; the last one drops out."""
    place = len(order_K) - 1
    while place > 0 and order_K[place - 1] < order:
        order_K[place], ids_K[place] = order_K[place - 1], ids_K[place - 1]
        place -= 1
    order_K[place], ids_K[place] = order, index


@inlined
def log_total(logits_V: Array, most: np.float32) -> np.float64:
    """`log(sum(exp(logits)))`, given the maximum `most`; accurate enough to subtract it from large logits."""
    total = np.float64(0)
    for start in range(0, len(logits_V), _SUMMED):
        chunk = logits_V[start : start + _SUMMED]
        part = np.float32(0)
        for i in range(len(chunk)):
            part += exp_below(widen(chunk[i]) - most)
        total += part
    return np.float64(most + np.log(total))


@inlined
def rank_place(n: int, logits_RV: Array, ranking: Ranking) -> None:
    """Write the n-th place's most likely ids, their values, and the chosen id's log-probability if one is asked for."""
    logits_V, values_K = logits_RV[ranking.places_N[n]], ranking.values_NK[n]
    highest(logits_V, ranking.ids_NK[n], values_K)
    if len(ranking.chosen_N) > 0:
        total = log_total(logits_V, values_K[0])
        ranking.chosen_N[n] = widen(logits_V[ranking.chosen_ids_N[n]]) - total
        for k in range(len(values_K)):
            values_K[k] -= total
