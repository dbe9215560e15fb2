"""A thread's part of a matrix product: the outputs of one tile after the other, for all rows of a pass.

Shapes: R rows, O outputs, I inputs, W = 32.
"""

from __future__ import annotations

import numpy as np

from osd.kernels.cpu.bits import Array, apart, inner, room
from osd.kernels.cpu.products import outputs
from osd.kernels.cpu.products.tile import leave, ready, rows_at_once, sums
from osd.kernels.cpu.products.tiling import STEP_BYTES, WIDTH
from osd.kernels.cpu.sharing import Turns, shared

_FLOATS: Array = np.empty(0, np.float32)
_BYTES_OF_A_STEP = WIDTH * STEP_BYTES


@apart
def project(weights: int, x_RI: Array, out_RO: Array, is_added: bool, turns: Turns) -> None:
    """The product with the tiles at an address, written or added; at a phase's turns."""
    at_once, num_ready = rows_at_once(x_RI), 0
    sums_RW = room(at_once, WIDTH, _FLOATS)
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
    leave(x_RI)


@apart
def project_gated(weights: int, x_RI: Array, out_RO: Array, turns: Turns) -> None:
    """`silu(gate) * up` (Shazeer 2020, arXiv 2002.05202); the ups' tiles follow the gates'."""
    at_once, num_ready = rows_at_once(x_RI), 0
    gates_RW, ups_RW = room(at_once, WIDTH, _FLOATS), room(at_once, WIDTH, _FLOATS)
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
    leave(x_RI)


@inner
def _of_tile(x_RI: Array, address: int, ahead: int, out_RW: Array) -> None:
    """Of the tile at an address; so many bytes further on is what to bring near."""
    steps = address + _BYTES_OF_A_STEP
    sums(x_RI, address, steps, out_RW, steps + ahead)


@inner
def _half_ahead(start: int, x_RI: Array) -> int:
    """How far on that is, for the rows from `start` on: the next tile's halves while the first two times as many rows
    as are summed at once are; else what is near already. Only the first rows of a tile wait for the memory.
    """
    at_once, size = rows_at_once(x_RI), _num_bytes(x_RI)
    if len(x_RI) <= at_once or start > at_once:
        return 0
    return size if start == 0 else size + size // 2


@inner
def num_tiles(out_RO: Array) -> int:
    """That make so many outputs; the last one may make fewer."""
    num_outputs: int = out_RO.shape[1]
    return (num_outputs + WIDTH - 1) // WIDTH


@inner
def _num_bytes(x_RI: Array) -> int:
    """Of a tile for such inputs."""
    num_steps: int = x_RI.shape[1] * x_RI.itemsize // STEP_BYTES
    return (1 + num_steps) * _BYTES_OF_A_STEP
