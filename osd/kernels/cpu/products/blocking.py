"""How a product is cut into blocks, so that what is summed stays in the registers that a kind of processor has.

A tile of 32 outputs takes two vectors of sixteen float32 a row: two of AVX-512's 32 registers, or four of AVX2's 16.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from osd.kernels.cpu.products.vectors import FEATURES

BLOCK_STEPS = 16
"""Steps of a tile (see `tiling.py`) that are summed for one half of its outputs, then for the other."""


class Blocking(NamedTuple):
    """Sizes of blocks, by kind of processor. Results do not depend on them: a row's terms are added in one order."""

    name: str
    dots_pairs: bool
    """An instruction multiplies pairs of bfloat16; else they are widened to float32 in registers."""
    rows: int
    """Most rows of a product that are summed at once: a tile's weights are read once for them."""
    whole_rows: int
    """Up to so many rows are summed for all 32 outputs at once. More are summed for sixteen of them, then for the
    others, `BLOCK_STEPS` steps at a time; their inputs are widened once a block instead of once a vector.
    """
    ahead_bytes: int
    """How far ahead weights are brought near where several rows are summed; 0: the processor does it well enough."""


BLOCKINGS = (
    Blocking("AVX512-BF16", dots_pairs=True, rows=8, whole_rows=8, ahead_bytes=0),
    Blocking("AVX-512", dots_pairs=False, rows=8, whole_rows=8, ahead_bytes=0),
    Blocking("AVX2", dots_pairs=False, rows=6, whole_rows=3, ahead_bytes=1024),
)


def blocking_for(features: Mapping[str, bool]) -> Blocking:
    """The blocks for a processor with such instructions; without AVX2, too, there are sixteen registers."""
    if not features.get("avx512f"):
        return BLOCKINGS[2]
    return BLOCKINGS[0 if features.get("avx512bf16") else 1]


BLOCKING = blocking_for(FEATURES)
