"""The block sizes of products that this processor can run: those of the instruction sets that it has."""

from __future__ import annotations

from osd.kernels.cpu.products.blocking import BLOCKINGS
from osd.kernels.cpu.products.vectors import FEATURES

RUNNABLE = [one for one in BLOCKINGS if not one.dots_pairs or FEATURES.get("avx512bf16")]
