"""The slot KV cache of compiled layers: keys and values in the layout of tiles, which attention reads directly.

A tile of keys has 32 positions as its outputs and a key's elements as its steps. A tile of values has 32 elements as
its outputs and positions as its steps. See `osd.kernels.cpu.products.tiling`; these tiles have no biases.

Shapes: A layers, S slots, M key/value heads, D head size, C blocks of W = 32 positions, H parts of W elements,
E elements of a step (two bfloat16, one float32), K = D / E steps of a key, T = C * W / E steps of values.
"""

from __future__ import annotations

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from osd.kernels.cpu.arguments import Array
from osd.kernels.cpu.arrays import array, tensor
from osd.kernels.cpu.products.tiling import STEP_BYTES, WIDTH
from osd.kernels.reference.window import clear_non_finite
from osd.machine.arrays import aligned


class TiledCache:
    """The preallocated cache of all layers and slots, initially zero; it takes no memory until it is written.

    Args:
        num_layers: A.
        num_slots: S.
        max_len: positions of a row.
        num_key_heads: M.
        head_size: D.
        like: its dtype is the cache's.
    """

    def __init__(
        self, num_layers: int, num_slots: int, max_len: int, num_key_heads: int, head_size: int, like: Tensor
    ) -> None:
        kind, per_step = array(like[:0]).dtype, STEP_BYTES // like.dtype.itemsize
        blocks, parts = _blocks(max_len), _blocks(head_size)
        heads, words = (num_layers, num_slots, num_key_heads), WIDTH * per_step
        self._keys = aligned((*heads, blocks, head_size // per_step, words), kind, zeros=True)
        self._values = aligned((*heads, parts, blocks * WIDTH // per_step, words), kind, zeros=True)
        self._per_step, self._steps_of_block = per_step, WIDTH // per_step
        self.keys_ASMCKW: Array = self._keys.view(np.uint32)
        self.values_ASMHTW: Array = self._values.view(np.uint32)
        self.slots = np.arange(num_slots)
        """Each row's slot."""

    def swap(self, row: int, other: int, num_tokens: int) -> None:
        """Exchange two rows, in every layer."""
        self.slots[[row, other]] = self.slots[[other, row]]

    def copy(self, source: int, destination: int, num_tokens: int) -> None:
        """Copy a row's first positions to another row, in every layer."""
        source, destination = self.slots[[source, destination]].tolist()
        blocks = _blocks(num_tokens)
        self._keys[:, destination, :, :blocks] = self._keys[:, source, :, :blocks]
        steps = blocks * self._steps_of_block
        self._values[:, destination, :, :, :steps] = self._values[:, source, :, :, :steps]

    def clear(self, row: int, start: int, held: int | None = None) -> None:
        """Zero a row from position `start` on. Blocks that were never written are skipped: they take no memory yet."""
        slot, end = self.slots[row], None if held is None else _blocks(held)
        keys, values = self.keys_ASMCKW[:, slot], self.values_ASMHTW[:, slot]
        block, offset = divmod(start, WIDTH)
        keys[:, :, block : block + 1, :, offset:] = 0
        keys[:, :, block + 1 : end] = 0
        step, is_second = divmod(start, WIDTH // self._steps_of_block)
        if is_second:  # of a step's two bfloat16 the first is before `start`
            values[:, :, :, step] &= np.uint32(0xFFFF)
        values[:, :, :, step + is_second : None if end is None else end * self._steps_of_block] = 0

    def row(self, row: int, num_tokens: int) -> tuple[Tensor, Tensor]:
        """A row's keys and values at its first positions, in every layer: `[A, M, num_tokens, D]` each."""
        keys, values = self._by_element(int(self.slots[row]), _blocks(num_tokens))
        size = self._keys.shape[4] * self._per_step
        return (
            keys.transpose(3, 4).flatten(4).flatten(2, 3)[:, :, :num_tokens],
            values.permute(0, 1, 3, 5, 2, 4).flatten(4).flatten(2, 3)[:, :, :num_tokens, :size],
        )

    def write_row(self, row: int, keys_AMLD: Tensor, values_AMLD: Tensor) -> None:
        """Copy a row's first L positions from another cache, in every layer, bit for bit."""
        blocks, heads = _blocks(keys_AMLD.shape[2]), keys_AMLD.shape[:2]
        steps, parts, elements = blocks * self._steps_of_block, self._values.shape[3], self._per_step
        to_block, to_part = -keys_AMLD.shape[2] % WIDTH, parts * WIDTH - values_AMLD.shape[3]
        keys = F.pad(keys_AMLD, (0, 0, 0, to_block)).reshape(*heads, blocks, WIDTH, -1, elements)
        values = F.pad(values_AMLD, (0, to_part, 0, to_block)).reshape(*heads, steps, elements, parts, WIDTH)
        kept_keys, kept_values = self._by_element(int(self.slots[row]), blocks)
        kept_keys.copy_(keys.transpose(3, 4))
        kept_values.copy_(values.permute(0, 1, 4, 2, 5, 3))

    def _by_element(self, slot: int, blocks: int) -> tuple[Tensor, Tensor]:
        """Views of a slot's first blocks: keys `[A, M, C, K, W, E]`, values `[A, M, H, T, W, E]`."""
        keys = tensor(self._keys[:, slot, :, :blocks])
        values = tensor(self._values[:, slot, :, :, : blocks * self._steps_of_block])
        return (
            keys.view(*keys.shape[:-1], WIDTH, self._per_step),
            values.view(*values.shape[:-1], WIDTH, self._per_step),
        )

    def clear_non_finite(self, held: int | None = None) -> None:
        """See `osd.kernels.backend.Cache`."""
        end = None if held is None else _blocks(held)
        for layer in self._keys[:, :, :, :end]:
            clear_non_finite(tensor(layer))
        for layer in self._values[:, :, :, :, : None if end is None else end * self._steps_of_block]:
            clear_non_finite(tensor(layer))


def _blocks(num: int) -> int:
    """The number of blocks of W that hold `num` positions or elements."""
    return -(-num // WIDTH)
