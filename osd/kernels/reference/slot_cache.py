"""The slot KV cache: one preallocated row a query, written at per-row positions, rolled back by moving a length.

A row's valid part is known to its owner (the engine's sequences, or a drafter); what lies beyond it is stale and is
overwritten by the next pass, so a rejected token costs nothing to drop.

Shapes: S slots, B rows of a pass, N key/value heads, Q new positions, L cached positions seen, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from osd.machine.arrays import exchange
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


class SlotLayer(CacheLayerMixin):  # type: ignore[misc]  # transformers is untyped for mypy
    """One attention layer's keys and values, `[S, N, max_len, D]`, allocated at the first pass."""

    is_sliding = False

    def __init__(self, window: PassWindow, num_slots: int, max_len: int) -> None:
        super().__init__()
        self.window = window
        self.num_slots = num_slots
        self.max_len = max_len

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate once the head count, head size, dtype and device are known."""

        def allocate(states: Tensor) -> Tensor:
            _, heads, _, size = states.shape
            return torch.zeros(self.num_slots, heads, self.max_len, size, dtype=states.dtype, device=states.device)

        self.keys, self.values = allocate(key_states), allocate(value_states)
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write `[B, N, Q, D]` into the rows of the pass, and return views `[B, N, L, D]`."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        window = self.window
        rows = slice(window.first_row, window.first_row + window.num_rows)
        seen = []
        for cached, new in ((self.keys, key_states), (self.values, value_states)):
            if window.num_rows == 1 and window.starts is not None:
                start = window.starts[0]
                cached[window.first_row, :, start : start + window.num_new] = new[0]
            else:
                cached[window.rows_B1, :, window.positions_BQ] = new.transpose(1, 2)
            seen.append(cached[rows, :, : window.num_seen])
        return seen[0], seen[1]

    def swap(self, row: int, other: int, num_tokens: int) -> None:
        """Let two rows' first positions change places."""
        if self.is_initialized:
            for cached in (self.keys, self.values):
                exchange(cached[row, :, :num_tokens], cached[other, :, :num_tokens])

    def copy(self, source: int, destination: int, num_tokens: int) -> None:
        """Write a row's first positions over another row's."""
        if self.is_initialized:
            for cached in (self.keys, self.values):
                cached[destination, :, :num_tokens] = cached[source, :, :num_tokens]

    def clear(self, row: int, start: int) -> None:
        """Zero a row from a position on."""
        if self.is_initialized:
            for cached in (self.keys, self.values):
                cached[row, :, start:] = 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(cached positions seen, offset)."""
        return self.window.num_seen, 0

    def get_seq_length(self) -> int:
        """Positions before this pass; models that ask are given explicit positions anyway."""
        return self.window.num_seen - self.window.num_new

    def get_max_length(self) -> int:
        """Most positions of a row."""
        return self.max_len


class SlotCache(Cache):  # type: ignore[misc]  # transformers is untyped for mypy
    """All layers' slots, in the form that transformers' models accept as their cache."""

    def __init__(self, window: PassWindow, num_layers: int, num_slots: int, max_len: int) -> None:
        super().__init__(layers=[SlotLayer(window, num_slots, max_len) for _ in range(num_layers)])

    def swap(self, row: int, other: int, num_tokens: int) -> None:
        """Let two rows' first positions change places, in every layer."""
        for layer in self.layers:
            layer.swap(row, other, num_tokens)

    def copy(self, source: int, destination: int, num_tokens: int) -> None:
        """Write a row's first positions over another row's, in every layer."""
        for layer in self.layers:
            layer.copy(source, destination, num_tokens)

    def clear(self, row: int, start: int, held: int | None = None) -> None:
        """Zero a row from position `start` on, in every layer.

        Args:
            row: which.
            start: its first position that is zeroed.
            held: positions that were written at most. It is no bound here: a pass sees all rows as far as its longest.
        """
        for layer in self.layers:
            layer.clear(row, start)

    def clear_non_finite(self) -> None:
        """See the function of this name."""
        for layer in self.layers:
            if layer.is_initialized:
                clear_non_finite(layer.keys)
                clear_non_finite(layer.values)
