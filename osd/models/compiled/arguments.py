"""What the compiled stack of layers is called with; numba takes named tuples of arrays and numbers as they are.

Shapes: A layers, R rows (B rows of the cache with Q new positions each), H hidden size, I the MLP's, N query heads,
M key/value heads, X = N + 2M, Y = 2M, D head size, L positions, S slots.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
PHASES = 8
"""Of a layer; one more follows the last."""
COUNTERS = 8
"""int64 a phase, of which two are used: a cache line of its own."""


class Stack(NamedTuple):
    """What is the same for every pass. Weights are given by the address of their tiles."""

    qkv_A: Array
    attention_out_A: Array
    gate_up_A: Array
    down_A: Array
    is_int4: bool
    """Whether the tiles hold codes (`osd.models.compiled.int4`)."""
    norms_A2H: Array
    """Before attention, before the MLP."""
    head_norms_A2D: Array
    """Of queries, of keys; `[A, 2, 0]` where the model has none."""
    final_norm_H: Array
    eps: np.float32
    cos_LD: Array
    sin_LD: Array
    scale: np.float32
    reaches_A: Array
    """How many positions back a query looks, with its own."""
    cache_ASYLD: Array


class Span(NamedTuple):
    """Which positions a pass reads."""

    first_row: int
    """In the cache, of the first row."""
    starts_B: Array
    firsts_B: Array
    """The first position that may be looked at."""
    num_new: int


class Scratch(NamedTuple):
    """What a pass writes: `x_RH` is the embedding at first, and in the end what comes out of the last layer."""

    x_RH: Array
    normed_RH: Array
    heads_RP: Array
    """P = X * D; the next is the same memory, head by head."""
    heads_RXD: Array
    attended_RP: Array
    """P = N * D; likewise."""
    attended_RND: Array
    gated_RI: Array
    counters: Array
    """Zeros, `COUNTERS` for every phase; see `PHASES`."""
