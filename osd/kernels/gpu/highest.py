"""The index of each row's maximum for few long rows; torch would use only one multiprocessor per row.

Shapes: R rows, V values.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_CHUNK = 2048


@triton.jit
def _highest_of_chunk(values, row_stride, size, highest, places, num_chunks, CHUNK: tl.constexpr):
    """The maximum of one chunk of a row. Programs `[R, chunks]`."""
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    v = chunk * CHUNK + tl.arange(0, CHUNK)
    value = tl.load(values + row * row_stride + v, mask=v < size, other=-float("inf")).to(tl.float32)
    # NaN counts as infinity: comparisons with NaN are false, so padding could win.
    value = tl.where(value == value, value, float("inf"))
    best, place = tl.max(value, 0, return_indices=True, return_indices_tie_break_left=True)
    tl.store(highest + row * num_chunks + chunk, best)
    tl.store(places + row * num_chunks + chunk, chunk * CHUNK + place)


@triton.jit
def _highest_of_chunks(highest, places, chosen, num_chunks, CHUNKS: tl.constexpr):
    """The maximum over a row's chunks. Programs `[R]`."""
    row, c = tl.program_id(0), tl.arange(0, CHUNKS)
    value = tl.load(highest + row * num_chunks + c, mask=c < num_chunks, other=-float("inf"))
    _, chunk = tl.max(value, 0, return_indices=True, return_indices_tie_break_left=True)
    tl.store(chosen + row, tl.load(places + row * num_chunks + chunk).to(tl.int64))


def highest(values_RV: Tensor) -> Tensor:
    """The index of each row's maximum, `[R]` int64, the first if there are several. NaN counts as infinity.

    Args:
        values_RV: contiguous along V.
    """
    num_rows, size = values_RV.shape
    num_chunks = triton.cdiv(size, _CHUNK)
    best_RC = values_RV.new_empty(num_rows, num_chunks, dtype=torch.float32)
    places_RC = values_RV.new_empty(num_rows, num_chunks, dtype=torch.int32)
    chosen_R = values_RV.new_empty(num_rows, dtype=torch.int64)
    _highest_of_chunk[(num_rows, num_chunks)](
        values_RV, values_RV.stride(0), size, best_RC, places_RC, num_chunks, CHUNK=_CHUNK
    )
    _highest_of_chunks[(num_rows,)](
        best_RC, places_RC, chosen_R, num_chunks, CHUNKS=triton.next_power_of_2(num_chunks), num_warps=1
    )
    return chosen_R
