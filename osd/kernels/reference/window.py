"""Which rows and positions of a slot cache a pass writes and sees.

A slot cache has one preallocated row a query, written at per-row positions and rolled back by moving a length. A row's
valid part is known to its owner (the engine's sequences, or a drafter); what lies beyond it is stale and is
overwritten by the next pass, so a rejected token costs nothing to drop.

Shapes: B rows of a pass, Q new positions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from osd.machine.transfer import upload


def clear_non_finite(cached: Tensor) -> None:
    """Zero what overflowing weights left in a cache.

    Masked or not, a NaN there would turn everything computed over its row into NaN, for good.
    """
    if not bool(cached.sum().isfinite()):
        cached.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)


class PassWindow:
    """Which rows and positions the current pass writes and sees; shared by every layer."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.first_row = 0
        self.num_rows = 0
        self.num_new = 0
        self.num_seen = 0
        self.starts: Sequence[int] | None = ()
        """None where only the device knows them."""
        self._starts_B: Tensor | None = None
        self._rows_B1: Tensor | None = None
        self._positions_BQ: Tensor | None = None

    def set(self, first_row: int, starts: Sequence[int], num_new: int) -> None:
        """The next pass writes `num_new` positions from `starts[b]` on in row `first_row + b`."""
        self._place(first_row, len(starts), num_new, max(starts) + num_new)
        self.starts, self._starts_B = starts, None

    def set_on_device(self, starts_B: Tensor, num_new: int, num_seen: int) -> None:
        """As `set` from row 0 on, with starts that the host does not know: what is seen has a fixed size instead."""
        self._place(0, len(starts_B), num_new, num_seen)
        self.starts, self._starts_B = None, starts_B

    def _place(self, first_row: int, num_rows: int, num_new: int, num_seen: int) -> None:
        self.first_row, self.num_rows, self.num_new, self.num_seen = first_row, num_rows, num_new, num_seen
        self._rows_B1 = self._positions_BQ = None

    @property
    def rows_B1(self) -> Tensor:  # noqa: N802 - its shape, as everywhere
        """The rows of the pass; made when first asked for, since a compiled pass does not ask."""
        if self._rows_B1 is None:
            self._rows_B1 = torch.arange(self.first_row, self.first_row + self.num_rows, device=self.device)[:, None]
        return self._rows_B1

    @property
    def positions_BQ(self) -> Tensor:  # noqa: N802 - as above
        """Which positions are new; made when first asked for, too."""
        if self._positions_BQ is None:
            self._positions_BQ = self.starts_B[:, None] + torch.arange(self.num_new, device=self.device)
        return self._positions_BQ

    @property
    def starts_B(self) -> Tensor:  # noqa: N802 - as above
        """Each row's first new position."""
        if self._starts_B is None:
            assert self.starts is not None
            self._starts_B = upload(self.starts, self.device)
        return self._starts_B
