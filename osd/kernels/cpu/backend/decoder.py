"""A Llama-shaped decoder by compiled loops: one call for all layers, over a cache in the layout of tiles.

It computes the same as `osd.kernels.reference.llama`.

Shapes: B rows, Q new positions, R = B * Q, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from osd.kernels.backend import PassOutput, Proposed, Sizes, Wanted, Way, int4_refusal
from osd.kernels.cpu.arguments import Array
from osd.kernels.cpu.arrays import array, tensor
from osd.kernels.cpu.backend.layers import CompiledLayers, LayerWeights, TiledProjection, in_layout
from osd.kernels.cpu.backend.logits import CpuLogits, most_likely
from osd.kernels.cpu.backend.rows import CpuRows
from osd.kernels.cpu.kernels import Kernels
from osd.kernels.cpu.products.codes import BLOCK, rounded
from osd.kernels.cpu.products.tiling import untiled
from osd.kernels.cpu.tiled_cache import TiledCache
from osd.kernels.processor import describe
from osd.kernels.reference.decoder import draft_by_passes
from osd.kernels.reference.llama import Llama, LlamaLayer
from osd.kernels.reference.logits import TorchLogits
from osd.kernels.reference.projections import DenseProjection, share
from osd.kernels.reference.window import PassWindow
from osd.machine.arrays import Numbers, aligned
from osd.records.proposal import DraftBatch
from osd.verify.logits import Logits

_NUM_PARTS = {"gate_up": 2}
"""Number of parts of a layer's matrices that are read in parallel; the others have one."""


def fits_kernels(model: Any) -> bool:
    """Whether compiled loops can run a Llama-shaped model: its device, its dtype, and even sizes."""
    weight = model.get_input_embeddings().weight
    is_known = weight.device.type == "cpu" and weight.dtype in (torch.bfloat16, torch.float32)
    return is_known and not (weight.shape[1] | model.config.intermediate_size) % 2


class CpuDecoder:
    """See `osd.kernels.backend.Decoder`.

    Args:
        kernels: the compiled loops.
        model: a causal LM for which `is_llama` and `fits_kernels` hold.
        sizes: of the cache.
        kept: where hidden states are stored.
        frozen: whether the weights never change.
        is_int4: quantise the layers' weights (not the embedding's and the head's) to four bits.
        hidden_layers: see `osd.kernels.backend.Backend.decoder`. A pass is then one call per section of layers between
            these, instead of one for all.

    Raises:
        OsdError: the weights cannot be quantised.
    """

    name = "the fused pass"

    def __init__(
        self,
        kernels: Kernels,
        model: Any,
        sizes: Sizes,
        *,
        kept: CpuRows | None,
        frozen: bool,
        is_int4: bool,
        hidden_layers: Sequence[int] = (),
    ) -> None:
        self._kernels, self._kept, self._frozen, self._is_int4 = kernels, kept, frozen, is_int4
        self._hidden_layers = tuple(hidden_layers)
        self._llama = Llama(model, sizes.max_positions)
        like = self._llama.like
        if is_int4 and not (like.dtype == torch.bfloat16 and all(map(_has_whole_blocks, self._llama.layers))):
            raise int4_refusal(model)
        self.cache = TiledCache(*self._llama.cache_shape(sizes.num_slots, sizes.max_len), like=like)
        self._window = PassWindow(like.device)
        self._tiles: list[LayerWeights] = []
        if is_int4:
            for layer in self._llama.layers:
                for dense in layer.dense.values():
                    dense.weight_OI.copy_(rounded(dense.weight_OI, 4))

    @property
    def computes(self) -> str:
        """See `Passes`."""
        like = self._llama.like
        return describe(like.device, like.dtype, is_compiled=True, is_int4=self._is_int4)

    @property
    def ways(self) -> Sequence[Way]:
        """See `Decoder`."""
        return [self]

    def drop(self, way: Way) -> None:
        """See `Decoder`: there is only one."""

    def pack(self) -> None:
        """See `Decoder`."""
        llama, bits = self._llama, 4 if self._is_int4 else 0
        self._tiles = [_tiles(layer, keep=not self._frozen, bits=bits) for layer in llama.layers]
        self._rows_VH = array(llama.embedding.weight.detach())
        bounds = sorted({0, *self._hidden_layers, len(llama.layers)})
        self._sections = {
            first: self._section(slice(first, end), bits) for first, end in zip(bounds, bounds[1:], strict=False)
        }
        self._head = TiledProjection(self._kernels, llama.head.weight_OI, llama.head.bias_O)

    def _section(self, layers: slice, bits: int) -> CompiledLayers:
        """Consecutive layers that run in one call."""
        llama = self._llama
        return CompiledLayers(
            self._kernels,
            self._tiles[layers],
            llama.norm.weight,
            llama.norm.variance_epsilon,
            self.cache,
            *llama.rotation,
            num_heads=llama.heads.num_heads,
            gate_size=llama.gate_size,
            scale=llama.heads.scale,
            reaches=llama.heads.reaches[layers],
            bits=bits,
            first_layer=layers.start,
        )

    def unpack(self) -> None:
        """See `Decoder`. Weights that are not frozen were never removed."""
        if self._frozen:
            for layer, tiles in zip(self._llama.layers, self._tiles, strict=True):
                _take_back(layer, tiles)

    def read(self, first_row: int, ids_BQ: Numbers, starts: Sequence[int], *, logits: Wanted) -> PassOutput:
        """See `Way`."""
        num_rows, num_new = ids_BQ.shape
        self._window.set(first_row, starts, num_new)
        x_RH = aligned((num_rows * num_new, self._rows_VH.shape[1]), self._rows_VH.dtype)
        self._rows_VH.take(array(ids_BQ).reshape(-1), axis=0, out=x_RH, mode="clip")
        entering, hidden_RH = {}, x_RH
        for first, section in self._sections.items():
            if first in self._hidden_layers:
                entering[first] = x_RH.copy()
            hidden_RH = section(x_RH, self._window)
        hidden_BQH = hidden_RH.reshape(num_rows, num_new, -1)
        if self._kept is not None:
            kept_RJ = hidden_RH
            if self._hidden_layers:
                kept_RJ = np.concatenate([entering[layer] for layer in self._hidden_layers], axis=1)
            self._kept.keep_array(first_row, starts, kept_RJ.reshape(num_rows, num_new, -1))
        return PassOutput(self._logits(hidden_BQH, logits), lambda: tensor(hidden_BQH))

    def _logits(self, hidden_BQH: Array, wanted: Wanted) -> Logits | None:
        if wanted == "none":
            return None
        if wanted == "last":
            hidden_BQH = hidden_BQH[:, -1:].copy()
        num_rows, num_new, size = hidden_BQH.shape
        if hidden_BQH.dtype != np.uint16:
            return TorchLogits(self._head(tensor(hidden_BQH)))
        found_RV, best_R = self._head.project_and_argmax(hidden_BQH.reshape(-1, size))
        return CpuLogits(self._kernels, found_RV, num_new, best_R.reshape(num_rows, num_new))

    def draft(self, batch: DraftBatch, starts: Sequence[int], counts: Sequence[int], num_tokens: int) -> Proposed:
        """See `Passes`."""
        return draft_by_passes(self, batch, starts, counts, num_tokens, self._most_likely)

    def _most_likely(self, logits: Tensor) -> Tensor:
        return most_likely(self._kernels, logits)


def _has_whole_blocks(layer: LlamaLayer) -> bool:
    """Whether the number of inputs of every matrix is a multiple of a quantisation block."""
    return all(dense.weight_OI.shape[1] % BLOCK == 0 for dense in layer.dense.values())


def _tiles(layer: LlamaLayer, *, keep: bool, bits: int) -> LayerWeights:
    """A layer's weights as tiles; frees the layer's own weights unless `keep`."""
    tiles = {
        name: in_layout(dense.weight_OI, dense.bias_O, _NUM_PARTS.get(name, 1), bits=bits)
        for name, dense in layer.dense.items()
    }
    if not keep:
        layer.dense = {}
        for linear in (linear for linears in layer.linears.values() for linear in linears):
            linear.weight = nn.Parameter(torch.empty(0), requires_grad=False)
    query_norm, key_norm = (None if norm is None else norm.weight for norm in (layer.query_norm, layer.key_norm))
    return LayerWeights(
        attention_norm_H=layer.attention_norm.weight,
        query_norm_D=query_norm,
        key_norm_D=key_norm,
        mlp_norm_H=layer.mlp_norm.weight,
        **tiles,
    )


def _take_back(layer: LlamaLayer, weights: LayerWeights) -> None:
    """Restore a layer's own weights from its tiles."""
    dtype = layer.attention_norm.weight.dtype
    for name, linears in layer.linears.items():
        num_outputs = sum(linear.out_features for linear in linears)
        weight_OI, bias_O = untiled(getattr(weights, name), dtype, num_outputs, _NUM_PARTS.get(name, 1))
        layer.dense[name] = DenseProjection(weight_OI, None if linears[0].bias is None else bias_O)
        share(layer.dense[name], linears)
