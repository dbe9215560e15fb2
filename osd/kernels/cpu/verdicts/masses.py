"""An unnormalised distribution over the vocabulary with its sums by chunk, as compiled kernels exchange it.

Shapes: V vocabulary, C chunks of it, N of a chunk's values.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from osd.kernels.cpu.bits import Array, compiled_fast

CHUNK = 256


class Masses(NamedTuple):
    """An unnormalised distribution. A chunk whose sum is 0 has no masses, whatever its values are."""

    values_V: Array
    sums_C: Array
    most_C: Array
    """The bits of each chunk's largest value, before filters."""


@compiled_fast
def empty_masses(num: int) -> Masses:
    """Uninitialised masses of `num` tokens."""
    num_chunks = (num + CHUNK - 1) // CHUNK
    return Masses(np.empty(num, np.float32), np.empty(num_chunks, np.float32), np.empty(num_chunks, np.int32))


@compiled_fast
def mass_of(masses: Masses, index: int) -> np.float32:
    """One token's mass."""
    return masses.values_V[index] if masses.sums_C[index // CHUNK] > 0 else np.float32(0)


@compiled_fast
def spread(masses: Masses, factor: np.float32, places_V: Array, out_N: Array) -> None:
    """Write each token's mass, times a factor, to the token's place."""
    for c in range(len(masses.sums_C)):
        values, places = masses.values_V[c * CHUNK : (c + 1) * CHUNK], places_V[c * CHUNK : (c + 1) * CHUNK]
        here = factor if masses.sums_C[c] > 0 else np.float32(0)
        for i in range(len(values)):
            out_N[places[i]] = values[i] * here


@compiled_fast
def draw(masses: Masses, uniform: np.float32) -> int:
    """Draw an index by inversion; the sum must be positive. Never draws an index of mass 0."""
    total = np.float64(0)
    for c in range(len(masses.sums_C)):
        total += np.float64(masses.sums_C[c])
    threshold, below = np.float64(uniform) * total, np.float64(0)
    for c in range(len(masses.sums_C)):
        part = np.float64(masses.sums_C[c])
        if below + part > threshold:
            cumulated, chunk = below, masses.values_V[c * CHUNK : (c + 1) * CHUNK]
            for i in range(len(chunk)):
                cumulated += np.float64(chunk[i])
                if chunk[i] > 0 and cumulated > threshold:
                    return c * CHUNK + i
        below += part
    last = len(masses.values_V) - 1  # reached by rounding only
    while last > 0 and mass_of(masses, last) <= 0:
        last -= 1
    return last


@compiled_fast
def subtract(masses: Masses, total: np.float32, others_V: Array) -> np.float32:
    """Replace the masses by the residual: the positive part of their distribution minus another. Returns its sum.

    Args:
        masses: overwritten.
        total: sum of the masses before.
        others_V: the other distribution, normalised.
    """
    share = np.float32(1) / total
    for c in range(len(masses.sums_C)):
        if masses.sums_C[c] > 0:
            values, others = masses.values_V[c * CHUNK : (c + 1) * CHUNK], others_V[c * CHUNK : (c + 1) * CHUNK]
            for i in range(len(values)):
                beyond = values[i] * share - others[i]
                values[i] = beyond if beyond > 0 else np.float32(0)
            masses.sums_C[c] = sum_from(values, np.float32(0))
    return np.float32(masses.sums_C.sum())


@compiled_fast
def subtract_one(masses: Masses, index: int) -> np.float32:
    """Replace the masses by the residual for a draft distribution that gives 1 to one token. Returns its sum.

    Args:
        masses: overwritten; left unnormalised.
        index: that token.
    """
    c = index // CHUNK
    if masses.sums_C[c] > 0:
        masses.values_V[index] = np.float32(0)
        masses.sums_C[c] = sum_from(masses.values_V[c * CHUNK : (c + 1) * CHUNK], np.float32(0))
    return np.float32(masses.sums_C.sum())


@compiled_fast
def residual_sum(masses: Masses, total: np.float32, others_V: Array) -> np.float32:
    """The sum that `subtract` would return, without changing anything."""
    share, found = np.float32(1) / total, np.float32(0)
    for c in range(len(masses.sums_C)):
        if masses.sums_C[c] > 0:
            values, others = masses.values_V[c * CHUNK : (c + 1) * CHUNK], others_V[c * CHUNK : (c + 1) * CHUNK]
            for i in range(len(values)):
                beyond = values[i] * share - others[i]
                found += beyond if beyond > 0 else np.float32(0)
    return found


@compiled_fast
def add_up(masses: Masses) -> np.float32:
    """Recompute all chunks' sums; returns the total."""
    for c in range(len(masses.sums_C)):
        masses.sums_C[c] = sum_from(masses.values_V[c * CHUNK : (c + 1) * CHUNK], np.float32(0))
    return np.float32(masses.sums_C.sum())


@compiled_fast
def sum_from(values_N: Array, floor: np.float32) -> np.float32:
    """The sum of the values that are at least `floor`."""
    total = np.float32(0)
    for i in range(len(values_N)):
        total += values_N[i] if values_N[i] >= floor else np.float32(0)
    return total
