"""The slot KV cache of a fused model: all layers' keys and values in one tensor.

A pass writes and reads the same positions in every layer, so the views are made once for all layers.

Shapes: S slots, B rows of a pass, Q new positions, L cached positions read, M key/value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from osd.kernels.reference.window import PassWindow, clear_non_finite
from osd.machine.arrays import exchange, zeros_like_type


@dataclass(frozen=True, slots=True)
class LayerWindow:
    """One layer's cache, as views that a pass writes and reads."""

    keys_BMLD: Tensor
    values_BMLD: Tensor
    _written: Tensor
    _rows_B1: Tensor | None
    _positions_BQ: Tensor

    def write(self, heads_BQYD: Tensor) -> None:
        """Write the new positions' keys, then values: Y = 2M heads."""
        if self._rows_B1 is None:
            self._written.copy_(heads_BQYD[0])
        else:
            self._written[self._rows_B1, self._positions_BQ] = heads_BQYD


class FlatCache:
    """The preallocated cache of all layers and slots: `[layers, S, 2M, max_len, D]`.

    Args:
        num_layers: number of layers.
        num_slots: S.
        max_len: positions of a row.
        num_key_heads: M.
        head_size: D.
        like: gives the cache's dtype and device.
    """

    def __init__(
        self,
        num_layers: int,
        num_slots: int,
        max_len: int,
        num_key_heads: int,
        head_size: int,
        like: Tensor,
    ) -> None:
        shape = (num_layers, num_slots, 2 * num_key_heads, max_len, head_size)
        self.all = zeros_like_type(shape, like)
        self.by_position = self.all.transpose(2, 3)
        """The same memory as `[layers, S, max_len, 2M, D]`."""
        self._num_key_heads = num_key_heads

    def at(self, window: PassWindow) -> Iterator[LayerWindow]:
        """Every layer's views for a pass."""
        seen = self.all[:, window.first_row : window.first_row + window.num_rows, :, : window.num_seen]
        keys, values = seen[:, :, : self._num_key_heads].unbind(0), seen[:, :, self._num_key_heads :].unbind(0)
        rows_B1: Tensor | None = window.rows_B1
        written = self.by_position
        if window.num_rows == 1 and window.starts is not None:  # writing a slice is faster than indexing
            start = window.starts[0]
            written, rows_B1 = written[:, window.first_row, start : start + window.num_new], None
        for layer in zip(keys, values, written.unbind(0), strict=True):
            yield LayerWindow(*layer, rows_B1, window.positions_BQ)

    def swap(self, row: int, other: int, num_tokens: int) -> None:
        """Exchange two rows' first positions, in every layer."""
        exchange(self.all[:, row, :, :num_tokens], self.all[:, other, :, :num_tokens])

    def copy(self, source: int, destination: int, num_tokens: int) -> None:
        """Copy a row's first positions to another row, in every layer."""
        self.all[:, destination, :, :num_tokens] = self.all[:, source, :, :num_tokens]

    def clear(self, row: int, start: int, held: int | None = None) -> None:
        """Zero a row from position `start` on, since a pass reads all rows as far as the longest."""
        self.all[:, row, :, start : self._end(held)] = 0

    def row(self, row: int, num_tokens: int) -> tuple[Tensor, Tensor]:
        """A row's keys and values at its first positions, in every layer: `[layers, M, num_tokens, D]` each."""
        both = self.all[:, row, :, :num_tokens]
        return both[:, : self._num_key_heads], both[:, self._num_key_heads :]

    def write_row(self, row: int, keys_AMLD: Tensor, values_AMLD: Tensor) -> None:
        """Copy a row's first L positions from another cache, in every layer."""
        both = self.all[:, row, :, : keys_AMLD.shape[2]]
        both[:, : self._num_key_heads], both[:, self._num_key_heads :] = keys_AMLD, values_AMLD

    def clear_non_finite(self, held: int | None = None) -> None:
        """See `osd.kernels.backend.Cache`."""
        for layer in self.all[:, :, :, : self._end(held)]:
            clear_non_finite(layer)

    def _end(self, held: int | None) -> int | None:
        """Where what was written ends; on a GPU that is the rows' end, where captured rounds write their padding."""
        return held if self.all.device.type == "cpu" else None
