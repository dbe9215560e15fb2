"""The blocks of products that this processor can run: all but those of instructions that it lacks."""

from __future__ import annotations

from osd.kernels.cpu.products.blocking import BLOCKINGS
from osd.kernels.cpu.products.vectors import FEATURES

RUNNABLE = [one for one in BLOCKINGS if not one.dots_pairs or FEATURES.get("avx512bf16")]
