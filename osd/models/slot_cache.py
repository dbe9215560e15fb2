"""The slot cache as a transformers cache, for models that run by transformers' own forward.

Shapes: S slots, A layers, B rows of a pass, N key/value heads, Q new positions, L cached positions seen, D head size.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from osd.kernels.reference.window import PassWindow, clear_non_finite
from osd.machine.arrays import exchange, zeros_like_type

_KEPT = ("keys", "values")


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
            return zeros_like_type((self.num_slots, heads, self.max_len, size), states)

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
        """Exchange two rows' first positions."""
        if self.is_initialized:
            for cached in (self.keys, self.values):
                exchange(cached[row, :, :num_tokens], cached[other, :, :num_tokens])

    def copy(self, source: int, destination: int, num_tokens: int) -> None:
        """Copy a row's first positions to another row."""
        if self.is_initialized:
            for cached in (self.keys, self.values):
                cached[destination, :, :num_tokens] = cached[source, :, :num_tokens]

    def clear(self, row: int, start: int, held: int | None) -> None:
        """Zero a row from a position on, to where it was written at most."""
        if self.is_initialized:
            for cached in (self.keys, self.values):
                cached[row, :, start:held] = 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(cached positions read, offset)."""
        return self.window.num_seen, 0

    def get_seq_length(self) -> int:
        """Cached positions before the new ones; models are given explicit positions anyway."""
        return self.window.num_seen - self.window.num_new

    def get_max_length(self) -> int:
        """Most positions of a row."""
        return self.max_len


class SlotCache(Cache):  # type: ignore[misc]  # transformers is untyped for mypy
    """All layers' slots, as a transformers cache."""

    def __init__(self, window: PassWindow, num_layers: int, num_slots: int, max_len: int) -> None:
        super().__init__(layers=[SlotLayer(window, num_slots, max_len) for _ in range(num_layers)])

    def swap(self, row: int, other: int, num_tokens: int) -> None:
        """Exchange two rows' first positions, in every layer."""
        for layer in self.layers:
            layer.swap(row, other, num_tokens)

    def copy(self, source: int, destination: int, num_tokens: int) -> None:
        """Copy a row's first positions to another row, in every layer."""
        for layer in self.layers:
            layer.copy(source, destination, num_tokens)

    def clear(self, row: int, start: int, held: int | None = None) -> None:
        """Zero a row from position `start` on, in every layer; a pass reads all rows as far as the longest."""
        for layer in self.layers:
            layer.clear(row, start, held)

    def clear_non_finite(self, held: int | None = None) -> None:
        """See `osd.kernels.backend.Cache`."""
        for layer in self.layers:
            if layer.is_initialized:
                clear_non_finite(layer.keys[:, :, :held])
                clear_non_finite(layer.values[:, :, :held])

    def row(self, row: int, num_tokens: int) -> tuple[Tensor, Tensor]:
        """A row's keys and values at its first positions, in every layer: `[A, N, num_tokens, D]` each."""
        keys, values = ([getattr(layer, name)[row, :, :num_tokens] for layer in self.layers] for name in _KEPT)
        return torch.stack(keys), torch.stack(values)

    def write_row(self, row: int, keys_ANLD: Tensor, values_ANLD: Tensor) -> None:
        """Copy a row's first L positions from another cache, in every layer."""
        for layer, keys_NLD, values_NLD in zip(self.layers, keys_ANLD, values_ANLD, strict=True):
            if not layer.is_initialized:
                layer.lazy_initialization(keys_NLD[None], values_NLD[None])
            for name, new_NLD in zip(_KEPT, (keys_NLD, values_NLD), strict=True):
                getattr(layer, name)[row, :, : new_NLD.shape[1]] = new_NLD
