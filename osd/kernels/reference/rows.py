"""Every row's tokens and last hidden states by position, as torch tensors on any device.

Shapes: S rows, L positions, B rows of a pass, Q new positions, H hidden size, N positions copied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from osd.machine.arrays import exchange, zeros_like_type
from osd.machine.transfer import arrival, upload


class TorchRows:
    """See `osd.kernels.backend.RowMemory`.

    Args:
        num_slots: S.
        length: L.
        like: `[…, H]`, of the device and type of the hidden states.
        copied_as: dtype in which hidden states are copied to the host; None: their own.
    """

    def __init__(self, num_slots: int, length: int, like: Tensor, *, copied_as: torch.dtype | None = None) -> None:
        self.tokens_SL = zeros_like_type((num_slots, length), torch.empty(0, dtype=torch.long, device=like.device))
        self.hidden_SLH = zeros_like_type((num_slots, length, like.shape[-1]), like)
        self._copied_as = copied_as or like.dtype

    def write(self, row: int, start: int, ids: Sequence[int]) -> None:
        """See `RowMemory`."""
        self.tokens_SL[row, start : start + len(ids)] = upload(ids, self.tokens_SL.device)

    def write_rows(self, starts: Sequence[int], ids: Sequence[Sequence[int]]) -> None:
        """See `RowMemory`; writes all rows in one operation."""
        length, known = self.tokens_SL.shape[1], [token for one in ids for token in one]
        if not known:
            return
        firsts = [row * length + start for row, start in enumerate(starts)]
        places = [first + offset for first, one in zip(firsts, ids, strict=True) for offset in range(len(one))]
        places_N, known_N = upload([places, known], self.tokens_SL.device)
        self.tokens_SL.view(-1).scatter_(0, places_N, known_N)

    def keep(self, first_row: int, starts: Sequence[int], hidden_BQH: Tensor) -> None:
        """See `RowMemory`."""
        device, (num_rows, num_new) = hidden_BQH.device, hidden_BQH.shape[:2]
        rows_B1 = torch.arange(first_row, first_row + num_rows, device=device)[:, None]
        self.keep_at(rows_B1, upload(starts, device)[:, None] + torch.arange(num_new, device=device), hidden_BQH)

    def keep_at(self, rows_B1: Tensor, positions_BQ: Tensor, hidden_BQH: Tensor) -> None:
        """As `keep`, as a function of tensors only."""
        self.hidden_SLH[rows_B1, positions_BQ] = hidden_BQH.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)

    def copy_hidden(self, row: int, start: int, stop: int) -> Callable[[], Tensor]:
        """See `RowMemory`."""
        on_their_way = self.hidden_SLH[row, start:stop].to("cpu", self._copied_as, copy=True, non_blocking=True)
        wait = arrival(self.hidden_SLH.device)

        def arrived() -> Tensor:
            wait()
            return on_their_way

        return arrived

    def swap(self, row: int, other: int, num_tokens: int) -> None:
        """See `RowMemory`."""
        for kept in (self.tokens_SL, self.hidden_SLH):
            exchange(kept[row, :num_tokens], kept[other, :num_tokens])

    def copy(self, source: int, destination: int, num_tokens: int) -> None:
        """See `RowMemory`."""
        for kept in (self.tokens_SL, self.hidden_SLH):
            kept[destination, :num_tokens] = kept[source, :num_tokens]
