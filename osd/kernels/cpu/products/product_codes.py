"""A thread's share of a matrix product with quantised weights; see `osd.kernels.cpu.products.product`.

Shapes: R rows, O outputs, I inputs, B blocks, W = 32.
"""

from __future__ import annotations

import numpy as np

from osd.kernels.cpu.bits import Array, compiled, empty_rows, inlined
from osd.kernels.cpu.products import outputs
from osd.kernels.cpu.products.codes import BLOCK, SCALES_BYTES
from osd.kernels.cpu.products.product import num_tiles
from osd.kernels.cpu.products.tile_codes import block_sums, code_rows_at_once, sums_codes
from osd.kernels.cpu.products.tiling import STEP_BYTES, WIDTH
from osd.kernels.cpu.sharing import Turns, shared

_FLOATS: Array = np.empty(0, np.float32)


@compiled
def project_codes(weights: int, bits: int, x_RI: Array, out_RO: Array, is_added: bool, turns: Turns) -> None:
    """As `project`, with weights quantised to `bits` bits."""
    at_once, sums_RB = code_rows_at_once(), block_sums(x_RI)
    sums_RW = empty_rows(at_once, WIDTH, _FLOATS)
    for tile in shared(turns, num_tiles(out_RO)):
        address = weights + tile * _num_bytes(x_RI, bits)
        for start in range(0, len(x_RI), at_once):
            some = slice(start, start + at_once)
            _sums(x_RI[some], sums_RB[some], bits, address, sums_RW)
            out = out_RO[some, tile * WIDTH : (tile + 1) * WIDTH]
            if is_added:
                outputs.add(sums_RW, out)
            else:
                outputs.write(sums_RW, out)


@compiled
def project_codes_gated(weights: int, bits: int, x_RI: Array, out_RO: Array, turns: Turns) -> None:
    """As `project_gated`, with weights quantised to `bits` bits."""
    at_once, sums_RB = code_rows_at_once(), block_sums(x_RI)
    gates_RW, ups_RW = empty_rows(at_once, WIDTH, _FLOATS), empty_rows(at_once, WIDTH, _FLOATS)
    to_ups = num_tiles(out_RO) * _num_bytes(x_RI, bits)
    for tile in shared(turns, num_tiles(out_RO)):
        gate = weights + tile * _num_bytes(x_RI, bits)
        for start in range(0, len(x_RI), at_once):
            some = slice(start, start + at_once)
            _sums(x_RI[some], sums_RB[some], bits, gate, gates_RW)
            _sums(x_RI[some], sums_RB[some], bits, gate + to_ups, ups_RW)
            outputs.gate(gates_RW, ups_RW, out_RO[some, tile * WIDTH : (tile + 1) * WIDTH])


@compiled
def _sums(x_RI: Array, sums_RB: Array, bits: int, address: int, out_RW: Array) -> None:
    """The product with the tile at an address. Not inlined: its code has variants for all bits and numbers of rows."""
    sums_codes(x_RI, sums_RB, bits, address, out_RW)


@inlined
def _num_bytes(x_RI: Array, bits: int) -> int:
    """Bytes of a tile for inputs of this size."""
    num_inputs: int = x_RI.shape[1]
    return WIDTH * STEP_BYTES + num_inputs // BLOCK * (SCALES_BYTES + WIDTH * BLOCK * bits // 8)
