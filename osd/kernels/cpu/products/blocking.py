"""How a product is divided into blocks, so that the sums stay in the processor's registers.

A row of a tile of 32 outputs takes two vectors of sixteen float32: two of AVX-512's 32 registers, or four of AVX2's 16.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from osd.kernels.cpu.products.vectors import FEATURES

BLOCK_STEPS = 16
"""Steps of a tile (see `tiling.py`) that are added for one half of its outputs before the other half."""


class Blocking(NamedTuple):
    """Block sizes for an instruction set. Results do not depend on them: a row's terms are added in one order."""

    name: str
    dots_pairs: bool
    """Whether an instruction multiplies pairs of bfloat16; otherwise they are widened to float32 in registers."""
    rows: int
    """Most rows per block: a tile's weights are read once for them."""
    whole_rows: int
    """Up to this many rows are summed for all 32 outputs at once. With more rows, sixteen outputs are summed and then
    the other sixteen, `BLOCK_STEPS` steps at a time, and inputs are widened once per block instead of once per vector.
    """
    ahead_bytes: int
    """Distance at which weights are prefetched when several rows are summed; 0 leaves it to the processor."""


BLOCKINGS = (
    Blocking("AVX512-BF16", dots_pairs=True, rows=8, whole_rows=8, ahead_bytes=0),
    Blocking("AVX-512", dots_pairs=False, rows=8, whole_rows=8, ahead_bytes=0),
    Blocking("AVX2", dots_pairs=False, rows=6, whole_rows=3, ahead_bytes=1024),
)


def blocking_for(features: Mapping[str, bool]) -> Blocking:
    """The block sizes for a processor with these instruction sets; one without AVX2 also has sixteen registers."""
    if not features.get("avx512f"):
        return BLOCKINGS[2]
    return BLOCKINGS[0 if features.get("avx512bf16") else 1]


BLOCKING = blocking_for(FEATURES)
