"""An unnormalised distribution over the vocabulary with its sums by chunk, as compiled kernels exchange it.

Shapes: V vocabulary, C chunks of it, N of a chunk's values.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from osd.kernels.cpu.bits import Array, loose

CHUNK = 256


class Weights(NamedTuple):
    """An unnormalised distribution. A chunk whose sum is 0 has no weights, whatever its values are."""

    values_V: Array
    sums_C: Array
    most_C: Array
    """The bits of each chunk's largest value, before filters."""


@loose
def room_for(num: int) -> Weights:
    """Uninitialised weights of `num` tokens."""
    num_chunks = (num + CHUNK - 1) // CHUNK
    return Weights(np.empty(num, np.float32), np.empty(num_chunks, np.float32), np.empty(num_chunks, np.int32))


@loose
def weight(weights: Weights, index: int) -> np.float32:
    """One token's weight."""
    return weights.values_V[index] if weights.sums_C[index // CHUNK] > 0 else np.float32(0)


@loose
def spread(weights: Weights, factor: np.float32, places_V: Array, out_N: Array) -> None:
    """Write each token's weight, times a factor, to the token's place."""
    for c in range(len(weights.sums_C)):
        values, places = weights.values_V[c * CHUNK : (c + 1) * CHUNK], places_V[c * CHUNK : (c + 1) * CHUNK]
        here = factor if weights.sums_C[c] > 0 else np.float32(0)
        for i in range(len(values)):
            out_N[places[i]] = values[i] * here


@loose
def draw(weights: Weights, uniform: np.float32) -> int:
    """Draw an index by inversion; the sum must be positive. Never draws an index of weight 0."""
    total = np.float64(0)
    for c in range(len(weights.sums_C)):
        total += np.float64(weights.sums_C[c])
    threshold, below = np.float64(uniform) * total, np.float64(0)
    for c in range(len(weights.sums_C)):
        part = np.float64(weights.sums_C[c])
        if below + part > threshold:
            cumulated, chunk = below, weights.values_V[c * CHUNK : (c + 1) * CHUNK]
            for i in range(len(chunk)):
                cumulated += np.float64(chunk[i])
                if chunk[i] > 0 and cumulated > threshold:
                    return c * CHUNK + i
        below += part
    last = len(weights.values_V) - 1  # reached by rounding only
    while last > 0 and weight(weights, last) <= 0:
        last -= 1
    return last


@loose
def leave(weights: Weights, total: np.float32, others_V: Array) -> np.float32:
    """Replace the weights by the residual: the positive part of their distribution minus another. Returns its sum.

    Args:
        weights: overwritten.
        total: sum of the weights before.
        others_V: the other distribution, normalised.
    """
    share = np.float32(1) / total
    for c in range(len(weights.sums_C)):
        if weights.sums_C[c] > 0:
            values, others = weights.values_V[c * CHUNK : (c + 1) * CHUNK], others_V[c * CHUNK : (c + 1) * CHUNK]
            for i in range(len(values)):
                beyond = values[i] * share - others[i]
                values[i] = beyond if beyond > 0 else np.float32(0)
            weights.sums_C[c] = sum_from(values, np.float32(0))
    return np.float32(weights.sums_C.sum())


@loose
def leave_out(weights: Weights, index: int) -> np.float32:
    """What there is beyond a distribution that gives 1 to one token, unnormalised; what it adds up to.

    Args:
        weights: changed.
        index: that token.
    """
    c = index // CHUNK
    if weights.sums_C[c] > 0:
        weights.values_V[index] = np.float32(0)
        weights.sums_C[c] = sum_from(weights.values_V[c * CHUNK : (c + 1) * CHUNK], np.float32(0))
    return np.float32(weights.sums_C.sum())


@loose
def excess(weights: Weights, total: np.float32, others_V: Array) -> np.float32:
    """The sum that `leave` would return, without changing anything."""
    share, found = np.float32(1) / total, np.float32(0)
    for c in range(len(weights.sums_C)):
        if weights.sums_C[c] > 0:
            values, others = weights.values_V[c * CHUNK : (c + 1) * CHUNK], others_V[c * CHUNK : (c + 1) * CHUNK]
            for i in range(len(values)):
                beyond = values[i] * share - others[i]
                found += beyond if beyond > 0 else np.float32(0)
    return found


@loose
def add_up(weights: Weights) -> np.float32:
    """Recompute all chunks' sums; returns the total."""
    for c in range(len(weights.sums_C)):
        weights.sums_C[c] = sum_from(weights.values_V[c * CHUNK : (c + 1) * CHUNK], np.float32(0))
    return np.float32(weights.sums_C.sum())


@loose
def sum_from(values_N: Array, floor: np.float32) -> np.float32:
    """The sum of the values that are at least `floor`."""
    total = np.float32(0)
    for i in range(len(values_N)):
        total += values_N[i] if values_N[i] >= floor else np.float32(0)
    return total
