"""Vector operations on quantised weights (`codes.py`): expansion to bfloat16, and the scales of their products.

A weight is `low + code * step`, with the same low and step for 32 inputs, so a row's sum over them is
`step * sum(code * x) + low * sum(x)`: codes are multiplied unscaled, and scaled once per 32 inputs. Expanding a code to
bfloat16 takes a shift, a mask and an or: with suitable exponent bits it reads as 128 + code, and the excess of 128 is
subtracted from the low.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from osd.kernels.cpu.products.codes import BLOCK, MOST, SCALES_BYTES
from osd.kernels.cpu.products.tiling import WIDTH
from osd.kernels.cpu.products.vectors import FLOATS, HALVES, INTS, VECTOR_BYTES, Code

NUM_HALVES = 2
"""Number of vectors for a tile's outputs."""
AHEAD_BYTES = 4608
"""Prefetch distance: the processor's own is too short for this loop. It raises the bandwidth by a fifth."""
_EXCESS = 128.0
_EXPONENT, _ONES = 0x4300_4300, 0x0001_0001
"""Two bfloat16 with value 128, whose last seven bits count units."""


def block_bytes(bits: int) -> int:
    """Size of one block of a tile."""
    return SCALES_BYTES + WIDTH * BLOCK * bits // 8


def as_pairs(code: Code, codes: Any, bits: int) -> list[Any]:
    """The steps held in a vector, as pairs of bfloat16 with the value `128 + code`."""
    builder, vectors = code.builder, []
    for number in range(16 // bits):
        shifted = builder.lshr(codes, ir.Constant(INTS, [bits * number] * 16))
        masked = builder.and_(shifted, ir.Constant(INTS, [MOST[bits] * _ONES] * 16))
        vectors.append(builder.or_(masked, ir.Constant(INTS, [_EXPONENT] * 16)))
    return vectors


def scales(code: Code, block: Any, half: int) -> tuple[Any, Any]:
    """The factors of the sums of `(128 + code) * x` and of `x`."""
    step, low = (
        code.builder.fpext(code.load(code.plus(block, part + half * VECTOR_BYTES // 2), HALVES), FLOATS)
        for part in (0, VECTOR_BYTES)
    )
    return step, code.add_product(step, ir.Constant(FLOATS, [-_EXCESS] * 16), low)
