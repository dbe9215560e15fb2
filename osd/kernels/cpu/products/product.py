"""A thread's share of a matrix product: tile by tile, the outputs for all rows of a pass.

Shapes: R rows, O outputs, I inputs, W = 32.
"""

from __future__ import annotations

import numpy as np

from osd.kernels.cpu.bits import Array, compiled, empty_rows, inlined
from osd.kernels.cpu.products import outputs
from osd.kernels.cpu.products.tile import ready, release_registers, rows_at_once, sums
from osd.kernels.cpu.products.tiling import STEP_BYTES, WIDTH
from osd.kernels.cpu.sharing import Turns, shared

_FLOATS: Array = np.empty(0, np.float32)
_BYTES_OF_A_STEP = WIDTH * STEP_BYTES


@compiled
def project(weights: int, x_RI: Array, out_RO: Array, is_added: bool, turns: Turns) -> None:
    """Write (or with `is_added` add) the product with the tiles at address `weights`, by one phase's turns."""
    at_once, num_ready = rows_at_once(x_RI), 0
    sums_RW = empty_rows(at_once, WIDTH, _FLOATS)
    for tile in shared(turns, num_tiles(out_RO)):
        for start in range(0, len(x_RI), at_once):
            some_RI = x_RI[start : start + at_once]
            num_ready = ready(some_RI, num_ready)
            _of_tile(some_RI, weights + tile * _num_bytes(x_RI), _half_ahead(start, x_RI), sums_RW)
            out = out_RO[start : start + at_once, tile * WIDTH : (tile + 1) * WIDTH]
            if is_added:
                outputs.add(sums_RW, out)
            else:
                outputs.write(sums_RW, out)
    release_registers(x_RI)


@compiled
def project_gated(weights: int, x_RI: Array, out_RO: Array, turns: Turns) -> None:
    """Write `silu(gate) * up` (Shazeer 2020, arXiv 2002.05202); the up projection's tiles follow the gate's."""
    at_once, num_ready = rows_at_once(x_RI), 0
    gates_RW, ups_RW = empty_rows(at_once, WIDTH, _FLOATS), empty_rows(at_once, WIDTH, _FLOATS)
    to_ups = num_tiles(out_RO) * _num_bytes(x_RI)
    for tile in shared(turns, num_tiles(out_RO)):
        gate = weights + tile * _num_bytes(x_RI)
        for start in range(0, len(x_RI), at_once):
            some_RI, ahead = x_RI[start : start + at_once], _half_ahead(start, x_RI)
            num_ready = ready(some_RI, num_ready)
            _of_tile(some_RI, gate, ahead, gates_RW)
            _of_tile(some_RI, gate + to_ups, ahead, ups_RW)
            out = out_RO[start : start + at_once, tile * WIDTH : (tile + 1) * WIDTH]
            outputs.gate(gates_RW, ups_RW, out)
    release_registers(x_RI)


@inlined
def _of_tile(x_RI: Array, address: int, ahead: int, out_RW: Array) -> None:
    """The product with the tile at an address; prefetches what lies `ahead` bytes after its steps."""
    steps = address + _BYTES_OF_A_STEP
    sums(x_RI, address, steps, out_RW, steps + ahead)


@inlined
def _half_ahead(start: int, x_RI: Array) -> int:
    """The prefetch distance for the rows from `start` on. The first block of rows waits for the memory, the next ones
    for arithmetic; each of the first two blocks prefetches half of the next tile. 0 for no prefetching.
    """
    at_once, size = rows_at_once(x_RI), _num_bytes(x_RI)
    if len(x_RI) <= at_once or start > at_once:
        return 0
    return size if start == 0 else size + size // 2


@inlined
def num_tiles(out_RO: Array) -> int:
    """Number of tiles for these outputs; the last one may have fewer than 32."""
    num_outputs: int = out_RO.shape[1]
    return (num_outputs + WIDTH - 1) // WIDTH


@inlined
def _num_bytes(x_RI: Array) -> int:
    """Bytes of a tile for inputs of this size."""
    num_steps: int = x_RI.shape[1] * x_RI.itemsize // STEP_BYTES
    return (1 + num_steps) * _BYTES_OF_A_STEP
