"""Codes (`codes.py`) in vectors: how they are multiplied, and what products with them are scaled by.

A weight is `low + code * step`, the same low and step for 32 inputs. So a row's sum over them is
`step * sum(code * x) + low * sum(x)`: the codes are multiplied as they are, and scaled once for 32. As bfloat16, a code
costs a shift, a mask and an or: with exponent bits set it reads as 128 + code, and what is too much is part of the low.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from osd.kernels.cpu.products.codes import BLOCK, MOST, SCALES_BYTES
from osd.kernels.cpu.products.tiling import WIDTH
from osd.kernels.cpu.products.vectors import FLOATS, HALVES, INTS, VECTOR_BYTES, Code

NUM_HALVES = 2
"""Vectors of a tile's outputs."""
AHEAD_BYTES = 4608
"""A processor looks ahead by itself, but not far enough past work of this kind: a fifth more bytes a second."""
_EXCESS = 128.0
_EXPONENT, _ONES = 0x4300_4300, 0x0001_0001
"""Two bfloat16 of 128, whose last seven bits count ones."""


def block_bytes(bits: int) -> int:
    """Of a tile's block."""
    return SCALES_BYTES + WIDTH * BLOCK * bits // 8


def as_pairs(code: Code, codes: Any, bits: int) -> list[Any]:
    """The steps that a vector holds, as pairs of bfloat16 of `128 + code`."""
    builder, vectors = code.builder, []
    for number in range(16 // bits):
        shifted = builder.lshr(codes, ir.Constant(INTS, [bits * number] * 16))
        masked = builder.and_(shifted, ir.Constant(INTS, [MOST[bits] * _ONES] * 16))
        vectors.append(builder.or_(masked, ir.Constant(INTS, [_EXPONENT] * 16)))
    return vectors


def scales(code: Code, block: Any, half: int) -> tuple[Any, Any]:
    """What sums of `(128 + code) * x` and of `x` alone are multiplied by."""
    step, low = (
        code.builder.fpext(code.load(code.plus(block, part + half * VECTOR_BYTES // 2), HALVES), FLOATS)
        for part in (0, VECTOR_BYTES)
    )
    return step, code.add_product(step, ir.Constant(FLOATS, [-_EXCESS] * 16), low)
