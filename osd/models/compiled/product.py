"""One tile's outputs of a matrix product, for all rows of a pass.

Shapes: R rows, O outputs, I inputs, B blocks, W = 32.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from osd.models.compiled.bits import Array, apart, exp, inner, narrow, widen
from osd.models.compiled.codes import BLOCK, SCALES_BYTES
from osd.models.compiled.tile import rows_at_once, sums
from osd.models.compiled.tile_codes import block_sums, code_rows_at_once, sums_codes
from osd.models.compiled.tiling import STEP_BYTES, WIDTH


class Inputs(NamedTuple):
    """What is multiplied."""

    x_RI: Array
    sums_RB: Array
    """Each row's sum over every block; no rows where the weights are no codes."""
    bits: int
    """Of a code; 0 where the weights are no codes."""


@apart
def inputs(x_RI: Array, bits: int) -> Inputs:
    """Of products with codes, or with weights."""
    return Inputs(x_RI, block_sums(x_RI if bits > 0 else x_RI[:0]), bits)


@apart
def project(tile: int, weights: int, x: Inputs, out_RO: Array, is_added: bool) -> None:
    """One tile's outputs for all rows, written or added."""
    first = tile * WIDTH
    address = weights + tile * _num_bytes(x)
    at_once = _at_once(x)
    sums_RW = np.empty((at_once, WIDTH), np.float32)
    for start in range(0, len(x.x_RI), at_once):
        num_rows = min(at_once, len(x.x_RI) - start)
        _sums(x, start, address, sums_RW)
        for row in range(num_rows):
            out_O = out_RO[start + row, first : first + WIDTH]
            if is_added:
                for i in range(len(out_O)):
                    out_O[i] = narrow(sums_RW[row, i] + widen(out_O[i]), out_O)
            else:
                for i in range(len(out_O)):
                    out_O[i] = narrow(sums_RW[row, i], out_O)


@inner
def project_gated(tile: int, weights: int, x: Inputs, out_RO: Array) -> None:
    """`silu(gate) * up` of one tile's outputs (Shazeer 2020, arXiv 2002.05202); the ups' tiles follow the gates'."""
    first = tile * WIDTH
    at_once = _at_once(x)
    gates_RW, ups_RW = np.empty((at_once, WIDTH), np.float32), np.empty((at_once, WIDTH), np.float32)
    gate = weights + tile * _num_bytes(x)
    up = gate + (out_RO.shape[1] + WIDTH - 1) // WIDTH * _num_bytes(x)
    for start in range(0, len(x.x_RI), at_once):
        num_rows = min(at_once, len(x.x_RI) - start)
        _sums(x, start, gate, gates_RW)
        _sums(x, start, up, ups_RW)
        for row in range(num_rows):
            out_O = out_RO[start + row, first : first + WIDTH]
            for i in range(len(out_O)):
                gate_value = gates_RW[row, i]
                out_O[i] = narrow(gate_value / (np.float32(1) + exp(-gate_value)) * ups_RW[row, i], out_O)


@apart
def _sums(x: Inputs, start: int, address: int, out_RW: Array) -> None:
    """Of the tile at an address, for as many rows from `start` on as are summed at once."""
    end = start + _at_once(x)
    if x.bits > 0:
        sums_codes(x.x_RI[start:end], x.sums_RB[start:end], x.bits, address, out_RW)
    else:
        sums(x.x_RI[start:end], address, out_RW)


@inner
def _at_once(x: Inputs) -> int:
    return code_rows_at_once() if x.bits > 0 else rows_at_once(x.x_RI)


@inner
def _num_bytes(x: Inputs) -> int:
    """Of a tile for such inputs."""
    num_inputs: int = x.x_RI.shape[1]
    if x.bits > 0:
        return WIDTH * STEP_BYTES + num_inputs // BLOCK * (SCALES_BYTES + WIDTH * BLOCK * x.bits // 8)
    num_steps: int = num_inputs * x.x_RI.itemsize // STEP_BYTES
    return (1 + num_steps) * WIDTH * STEP_BYTES
