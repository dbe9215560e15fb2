"""Which rows and positions of a slot cache a pass writes and reads.

A slot cache has one preallocated row per query, written at per-row positions and rolled back by reducing a length. A
row's valid length is known to its owner (the engine's sequences, or a drafter). What lies beyond it is stale and will
be overwritten by a later pass, so dropping rejected tokens costs nothing.

Shapes: B rows of a pass, Q new positions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from osd.machine.transfer import upload


def clear_non_finite(cached: Tensor) -> None:
    """Zero the NaN and infinite values in a cache, in place.

    Even where it is masked, a NaN would make everything computed over its row NaN.
    """
    if not bool(cached.sum().isfinite()):
        cached.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)


class PassWindow:
    """The rows and positions that the current pass writes and reads; shared by all layers."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.first_row = 0
        self.num_rows = 0
        self.num_new = 0
        self.num_seen = 0
        self.starts: Sequence[int] | None = ()
        """Each row's first new position; None if only the device knows them."""
        self._starts_B: Tensor | None = None
        self._rows_B1: Tensor | None = None
        self._positions_BQ: Tensor | None = None

    def set(self, first_row: int, starts: Sequence[int], num_new: int) -> None:
        """The next pass writes `num_new` positions from `starts[b]` on in row `first_row + b`."""
        self._place(first_row, len(starts), num_new, max(starts) + num_new)
        self.starts, self._starts_B = starts, None

    def set_on_device(self, starts_B: Tensor, num_new: int, num_seen: int) -> None:
        """As `set` from row 0 on, for starts that only the device knows; a fixed `num_seen` positions are read."""
        self._place(0, len(starts_B), num_new, num_seen)
        self.starts, self._starts_B = None, starts_B

    def _place(self, first_row: int, num_rows: int, num_new: int, num_seen: int) -> None:
        self.first_row, self.num_rows, self.num_new, self.num_seen = first_row, num_rows, num_new, num_seen
        self._rows_B1 = self._positions_BQ = None

    @property
    def rows_B1(self) -> Tensor:  # noqa: N802 - named by its shape
        """The rows of the pass; created on first use, since compiled passes do not use it."""
        if self._rows_B1 is None:
            self._rows_B1 = torch.arange(self.first_row, self.first_row + self.num_rows, device=self.device)[:, None]
        return self._rows_B1

    @property
    def positions_BQ(self) -> Tensor:  # noqa: N802 - named by its shape
        """The new positions; created on first use."""
        if self._positions_BQ is None:
            self._positions_BQ = self.starts_B[:, None] + torch.arange(self.num_new, device=self.device)
        return self._positions_BQ

    @property
    def starts_B(self) -> Tensor:  # noqa: N802 - named by its shape
        """Each row's first new position."""
        if self._starts_B is None:
            assert self.starts is not None
            self._starts_B = upload(self.starts, self.device)
        return self._starts_B
