"""Every row's tokens and last hidden states by position, as numpy arrays, which are the fastest to write on a CPU.

Shapes: S rows, L positions, B rows of a pass, Q new positions, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from osd.kernels.cpu.arguments import Array
from osd.kernels.cpu.arrays import array, tensor, with_zeros
from osd.machine.arrays import exchange, zeros_like_type


class CpuRows:
    """See `osd.kernels.backend.RowMemory`; the reference is `osd.kernels.reference.rows`.

    Args:
        num_slots: S.
        length: L.
        like: `[…, H]`, of the type of the hidden states.
    """

    def __init__(self, num_slots: int, length: int, like: Tensor) -> None:
        self.tokens_SL = zeros_like_type((num_slots, length), torch.empty(0, dtype=torch.long))
        self.hidden_SLH = zeros_like_type((num_slots, length, like.shape[-1]), like)
        self._tokens, self._hidden = array(self.tokens_SL), array(self.hidden_SLH)

    def write(self, row: int, start: int, ids: Sequence[int]) -> None:
        """See `RowMemory`."""
        self._tokens[row, start : start + len(ids)] = ids

    def write_rows(self, starts: Sequence[int], ids: Sequence[Sequence[int]]) -> None:
        """See `RowMemory`."""
        for row, (start, one) in enumerate(zip(starts, ids, strict=True)):
            self._tokens[row, start : start + len(one)] = one

    def keep(self, first_row: int, starts: Sequence[int], hidden_BQH: Tensor) -> None:
        """See `RowMemory`."""
        self.keep_array(first_row, starts, array(hidden_BQH))

    def keep_array(self, first_row: int, starts: Sequence[int], hidden_BQH: Array) -> None:
        """As `keep`, for an array."""
        num_new = hidden_BQH.shape[1]
        for row, (start, hidden_QH) in enumerate(zip(starts, with_zeros(hidden_BQH), strict=True), first_row):
            self._hidden[row, start : start + num_new] = hidden_QH

    def copy_hidden(self, row: int, start: int, stop: int) -> Callable[[], Tensor]:
        """See `RowMemory`."""
        return partial(tensor, self._hidden[row, start:stop].copy())

    def swap(self, row: int, other: int, num_tokens: int) -> None:
        """See `RowMemory`."""
        for kept in (self._tokens, self._hidden):
            exchange(kept[row, :num_tokens], kept[other, :num_tokens])

    def copy(self, source: int, destination: int, num_tokens: int) -> None:
        """See `RowMemory`."""
        for kept in (self._tokens, self._hidden):
            kept[destination, :num_tokens] = kept[source, :num_tokens]
