"""Projections and decoder layers by compiled kernels, with weights in their tile layout.

Shapes: R rows, O outputs, I inputs, H hidden size, A layers, D head size, L positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from osd.kernels.cpu.arguments import LAYER_PHASES, NONE, Array, Span, Stack, ranking_at
from osd.kernels.cpu.kernels import Kernels
from osd.kernels.cpu.products.codes import tiled_codes
from osd.kernels.cpu.products.tiling import tiled
from osd.kernels.cpu.tiled_cache import TiledCache
from osd.kernels.reference.window import PassWindow
from osd.machine.arrays import aligned

_EVERYWHERE = 2**40


def in_layout(weight_OI: Tensor, bias_O: Tensor | None, num_parts: int = 1, *, bits: int) -> Tensor:
    """The weights as tiles, quantised to `bits` bits unless that is 0."""
    if bits:
        return tiled_codes(weight_OI, bias_O, num_parts, bits=bits)
    return tiled(weight_OI, bias_O, num_parts)


class TiledProjection:
    """A linear projection, `x @ weight.T + bias`, by compiled loops. Without gradients.

    Args:
        kernels: the compiled loops.
        weight_OI: the weights, which are copied.
        bias_O: the bias, if any.
        bits: quantise the weights to this many bits; 0: do not.

    Raises:
        ValueError: the number of inputs is odd, in bfloat16.
    """

    def __init__(self, kernels: Kernels, weight_OI: Tensor, bias_O: Tensor | None = None, *, bits: int = 0) -> None:
        self._kernels = kernels
        self._num_outputs, self._num_inputs = weight_OI.shape
        self._bits = bits
        self.tiles = in_layout(weight_OI, bias_O, bits=bits)

    def __call__(self, x: Tensor) -> Tensor:
        """Apply it to any number of rows."""
        x_RI = x.reshape(-1, self._num_inputs)
        out_RO = x.new_empty((len(x_RI), self._num_outputs))
        self._kernels.project(self.tiles, self._bits, x_RI, out_RO)
        return out_RO.view(*x.shape[:-1], self._num_outputs)

    def project_and_argmax(self, x_RI: Array) -> tuple[Array, Array]:
        """The product in bfloat16, and the index of each row's largest output `[R]`, the first if there are several."""
        out_RO = np.empty((len(x_RI), self._num_outputs), x_RI.dtype)
        ranking = ranking_at(np.arange(len(x_RI)), NONE, 1)
        self._kernels.project_and_rank(self.tiles, self._bits, x_RI, out_RO, ranking)
        return out_RO, ranking.ids_NK[:, 0].astype(np.int64)


class LayerWeights(NamedTuple):
    """One decoder layer, its matrices as tiles. Norms of queries and keys are None where the model has none."""

    attention_norm_H: Tensor
    qkv: Tensor
    query_norm_D: Tensor | None
    key_norm_D: Tensor | None
    attention_out: Tensor
    mlp_norm_H: Tensor
    gate_up: Tensor
    """Gate and up projection as two parts."""
    down: Tensor


class CompiledLayers:
    """A stack of decoder layers over the slot cache, and the norm after them.

    Args:
        kernels: the compiled loops.
        layers: their weights; only the norms are copied.
        final_norm_H: weight of the norm after the last layer.
        eps: of every norm.
        cache: the KV cache.
        cos_LD: cosines by position.
        sin_LD: signed sines by position.
        num_heads: N.
        gate_size: I.
        scale: of the attention scores.
        reaches: how many positions each layer's attention spans, the query's own included; None: all.
        bits: of the quantised weights in the tiles; 0 if they are not quantised.
        first_layer: the first layer's place in the cache.
    """

    def __init__(
        self,
        kernels: Kernels,
        layers: Sequence[LayerWeights],
        final_norm_H: Tensor,
        eps: float,
        cache: TiledCache,
        cos_LD: Tensor,
        sin_LD: Tensor,
        *,
        num_heads: int,
        gate_size: int,
        scale: float,
        reaches: Sequence[int | None],
        bits: int = 0,
        first_layer: int = 0,
    ) -> None:
        self._kernels = kernels
        self._layers = layers  # keeps the tiles alive, which the stack refers to by address
        self.slots = cache.slots
        empty_D = torch.empty(0)
        head_norms = [
            torch.stack([empty_D if norm is None else norm for norm in (one.query_norm_D, one.key_norm_D)])
            for one in layers
        ]
        self.stack = Stack(
            qkv_A=_addresses([one.qkv for one in layers]),
            attention_out_A=_addresses([one.attention_out for one in layers]),
            gate_up_A=_addresses([one.gate_up for one in layers]),
            down_A=_addresses([one.down for one in layers]),
            bits=bits,
            norms_A2H=_floats(torch.stack([torch.stack((one.attention_norm_H, one.mlp_norm_H)) for one in layers])),
            head_norms_A2D=_floats(torch.stack(head_norms)),
            final_norm_H=_floats(final_norm_H),
            eps=np.float32(eps),
            cos_LD=_floats(cos_LD),
            sin_LD=_floats(sin_LD),
            scale=np.float32(scale),
            reaches_A=np.array([_EVERYWHERE if reach is None else reach for reach in reaches], np.int64),
            num_heads=num_heads,
            gate_size=gate_size,
            num_phases=LAYER_PHASES * len(layers) + 1,
            num_elements=2 * (num_heads + cache.keys_ASMCKW.shape[2]) * cos_LD.shape[1] + gate_size,
            keys_ASMCKW=cache.keys_ASMCKW[first_layer : first_layer + len(layers)],
            values_ASMHTW=cache.values_ASMHTW[first_layer : first_layer + len(layers)],
        )

    def __call__(self, x_RH: Array, window: PassWindow, firsts: Sequence[int] | None = None) -> Array:
        """Run a pass. It leaves the last layer's output, before the norm, in `x_RH`, and returns it after the norm.

        It takes and returns arrays: after a pass the processor's caches are full of weights, and each
        torch operation would cost tens of microseconds.

        Args:
            x_RH: the first layer's input; it is overwritten by the last layer's output.
            window: the new positions.
            firsts: each row's first position that may be attended to.
        """
        assert window.starts is not None
        starts_B = np.array(window.starts, np.int64)
        firsts_B = np.zeros_like(starts_B) if firsts is None else np.array(firsts, np.int64)
        normed_RH = aligned(x_RH.shape, x_RH.dtype)
        slots_B = self.slots[window.first_row : window.first_row + window.num_rows]
        span = Span(slots_B, starts_B, firsts_B, window.num_new)
        self._kernels.run_pass(self.stack, span, x_RH, normed_RH)
        return normed_RH


def _floats(tensor: Tensor) -> Array:
    return tensor.detach().float().contiguous().numpy()


def _addresses(tiles: Sequence[Tensor]) -> Array:
    return np.array([one.data_ptr() for one in tiles], np.int64)
