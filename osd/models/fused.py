"""A Llama-shaped decoder run as few, large operations: fused projections, one rotary table, one cache for all layers.

At a few positions a pass, transformers' own forward spends more time between its matrix products than in them. This
one reads the same weights: the transformers model's projections become views of the fused ones. On a CPU the layers
are one compiled call (`osd.kernels.cpu`), with the weights in its own layout; torch's operations do the work on
other devices, and where there is no compiler.

Shapes: B rows, Q new positions, R = B * Q, H hidden size, N query heads, M key/value heads, X = N + 2M, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from osd.kernels.cpu.layers import CompiledLayers, LayerWeights, TiledProjection, can_compile, in_layout
from osd.kernels.cpu.products.codes import BLOCK, rounded
from osd.kernels.cpu.products.tiling import untiled
from osd.kernels.cpu.tiled_cache import TiledCache
from osd.kernels.gpu.attention import PiecewiseAttention, fits_kernels
from osd.kernels.gpu.available import can_use_kernels
from osd.kernels.gpu.layers import project, read_layers
from osd.kernels.reference.attention import Attention, SdpaAttention
from osd.kernels.reference.flat_cache import FlatCache
from osd.kernels.reference.projections import DenseProjection, Projection, fuse, share
from osd.kernels.reference.rotary import signed
from osd.kernels.reference.row_ops import rms_norm, silu_gate
from osd.kernels.reference.slot_cache import PassWindow
from osd.machine.arrays import Numbers, aligned, array, tensor
from osd.machine.transfer import sent
from osd.models.pass_output import Logits, PassOutput

_FAMILIES = {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"}
_STATIC_ROPE = {"default", "linear", "llama3", "yarn"}
"""Rotary embeddings that depend on the position only: a table says it all."""
_NUM_PARTS = {"gate_up": 2}
"""Of a layer's matrices in tiles: which are read side by side."""


def is_supported(model: Any) -> bool:
    """Whether a transformers model has the shape that `FusedLM` runs."""
    return can_fuse(type(model).__name__, model.config)


def can_fuse(kind: str, config: Any) -> bool:
    """The same of a model that is not loaded yet.

    Args:
        kind: the name of transformers' class.
        config: the model's.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    return (
        kind in _FAMILIES
        and config.hidden_act == "silu"
        and rope.get("rope_type", "default") in _STATIC_ROPE
        and rope.get("partial_rotary_factor", 1.0) == 1.0
    )


class FusedLM:
    """The whole model: embedding, layers, norm and head, with its cache.

    Args:
        model: a causal LM for which `is_supported` holds.
        num_slots: rows of the cache.
        max_positions: most positions of a row.
        max_len: positions allocated for a row: padding may be written beyond its end.
        compiled: let a CPU's compiled kernels do what they can (a captured pass cannot have them).
    """

    def __init__(self, model: Any, *, num_slots: int, max_positions: int, max_len: int, compiled: bool) -> None:
        config, base = model.config, model.base_model
        self._embedding: nn.Embedding = base.embed_tokens
        self._norm = base.norm
        self._layers = [_Layer(layer) for layer in base.layers]
        self._dense_head = fuse(model.lm_head)
        self._head: Projection = self._dense_head
        weight = self._embedding.weight
        cos_1LD, sin_1LD = base.rotary_emb(weight, torch.arange(max_positions, device=weight.device)[None])
        self._rotation = cos_1LD[0], signed(sin_1LD[0])
        num_key_heads = config.num_key_value_heads
        self._num_key_heads = num_key_heads
        self._heads: dict[str, Any] = {
            "num_heads": config.num_attention_heads,
            "scale": base.layers[0].self_attn.scaling,
            "reaches": _reaches(config, len(self._layers)),
        }
        self._gate_size: int = config.intermediate_size
        self.fits_cpu_kernels = compiled and not (weight.shape[1] | self._gate_size) % 2
        """Whether they can run it, when there are any."""
        self._can_compile = self.fits_cpu_kernels and can_compile(weight)
        cache_shape = len(self._layers), num_slots, max_len, num_key_heads, cos_1LD.shape[-1]
        kind = TiledCache if self._can_compile else FlatCache
        self.cache: TiledCache | FlatCache = kind(*cache_shape, like=weight)
        self.is_int4 = False
        self._tiles: list[LayerWeights] = []
        self._compiled: CompiledLayers | None = None

    @property
    def can_round_to_int4(self) -> bool:
        """Whether the layers' weights can be four-bit codes."""
        is_bfloat16 = self._embedding.weight.dtype == torch.bfloat16
        return self._can_compile and is_bfloat16 and all(layer.has_whole_blocks for layer in self._layers)

    def round_to_int4(self) -> None:
        """Make it the model whose layers' weights are the nearest of four bits; not its embedding, nor its head."""
        for layer in self._layers:
            layer.round_to_int4()
        self.is_int4 = True

    def pack(self, *, keep: bool) -> None:
        """Copy the weights into the layout that is read fastest; after every change of them, again.

        Args:
            keep: False: they will not change any more, and the model's own stay only in embedding and head.
        """
        if not isinstance(self.cache, TiledCache):
            return
        bits = 4 if self.is_int4 else 0
        self._tiles = [layer.tiles(keep=keep, bits=bits) for layer in self._layers]
        self._rows_VH = array(self._embedding.weight.detach())
        self._compiled = CompiledLayers(
            self._tiles,
            self._norm.weight,
            self._norm.variance_epsilon,
            self.cache,
            *self._rotation,
            gate_size=self._gate_size,
            bits=bits,
            **self._heads,
        )
        self._head = TiledProjection(self._dense_head.weight_OI, self._dense_head.bias_O)

    def unpack(self) -> None:
        """Give the model back what `pack` did not keep."""
        for layer, tiles in zip(self._layers, self._tiles, strict=False):
            layer.take_back(tiles)

    @property
    def is_compiled(self) -> bool:
        """Whether passes are by a CPU's compiled kernels."""
        return self._compiled is not None

    def adopt(self, other: FusedLM, num_tokens: Sequence[int]) -> None:
        """Copy another one's rows, which it has read by torch's operations with the same weights.

        Args:
            other: of the same shapes.
            num_tokens: by row, how many positions are copied.
        """
        assert isinstance(other.cache, FlatCache)
        if not isinstance(self.cache, TiledCache):  # no kernels for its shape: its rows stay where they are
            self.cache = other.cache
            return
        for row, num in enumerate(num_tokens):
            if num:
                self.cache.write_row(row, *other.cache.row(row, num))

    def can_use_kernels(self, num_new: int) -> bool:
        """Whether a pass of so many new positions a row may be asked to."""
        num_heads: int = self._heads["num_heads"]
        fits = fits_kernels(num_new, num_heads, self._num_key_heads)
        return self._compiled is None and fits and can_use_kernels(self._embedding.weight.device)

    def __call__(self, ids_BQ: Numbers, window: PassWindow, *, logits: str, by_kernels: bool = False) -> PassOutput:
        """Logits (see `SlotModel.forward`) and last hidden states.

        Args:
            ids_BQ: new tokens.
            window: which cache entries are written and seen.
            logits: "all", "last" or "none".
            by_kernels: by a GPU's kernels instead of torch's operations.
        """
        if self._compiled is not None:
            return self._read_compiled(self._compiled, ids_BQ, window, logits)
        return self._read(sent(ids_BQ, window.device), window, logits, by_kernels=by_kernels)

    @torch.no_grad()
    def _read(self, ids_BQ: Tensor, window: PassWindow, logits: str, *, by_kernels: bool) -> PassOutput:
        """By torch's operations, or a GPU's kernels."""
        assert isinstance(self.cache, FlatCache)
        x_RH = self._embedding(ids_BQ.flatten())
        way = PiecewiseAttention if by_kernels else SdpaAttention
        attend = way(self.cache, window, *self._rotation, num_key_heads=self._num_key_heads, **self._heads)
        if by_kernels:
            hidden_RH = read_layers(self._layers, x_RH, attend, self._norm)
        else:
            for index, layer in enumerate(self._layers):
                x_RH = layer(index, x_RH, attend)
            hidden_RH = _normed(x_RH, self._norm)
        hidden_BQH = hidden_RH.view(*ids_BQ.shape, -1)
        if logits == "none":
            return PassOutput(None, hidden_BQH)
        last_BQH = hidden_BQH if logits == "all" else hidden_BQH[:, -1:]
        logits_BQV = project(self._dense_head, last_BQH) if by_kernels else self._head(last_BQH)
        return PassOutput(Logits(logits_BQV), hidden_BQH)

    def _read_compiled(self, layers: CompiledLayers, ids_BQ: Numbers, window: PassWindow, logits: str) -> PassOutput:
        """See `__call__`."""
        num_rows, num_new = ids_BQ.shape
        x_RH = aligned((num_rows * num_new, self._rows_VH.shape[1]), self._rows_VH.dtype)
        hidden_RH = layers(self._rows_VH.take(array(ids_BQ).reshape(-1), axis=0, out=x_RH, mode="clip"), window)
        hidden_BQH = hidden_RH.reshape(num_rows, num_new, -1)
        if logits == "none":
            return PassOutput(None, hidden_BQH)
        if logits == "last":
            num_new, hidden_RH = 1, hidden_BQH[:, -1].copy()
        if not isinstance(self._head, TiledProjection) or hidden_RH.dtype != np.uint16:
            logits_RV = self._head(tensor(hidden_RH))
            return PassOutput(Logits(logits_RV.view(num_rows, num_new, -1)), hidden_BQH)
        found_RV, best_R = self._head.find(hidden_RH)
        found = Logits(found_RV.reshape(num_rows, num_new, -1), best_R.reshape(num_rows, num_new))
        return PassOutput(found, hidden_BQH)


def _reaches(config: Any, num_layers: int) -> list[int | None]:
    """By layer, how many positions back a query looks."""
    window: int | None = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    kinds = kinds or ["full_attention" if window is None else "sliding_attention"] * num_layers
    return [window if kind == "sliding_attention" else None for kind in kinds]


class _Layer:
    """One decoder layer of transformers; its projections' weights become views of fused ones."""

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self._head_size: int = attention.head_dim
        self._num_key_heads = attention.k_proj.out_features // self._head_size
        self.attention_norm, self.mlp_norm = layer.input_layernorm, layer.post_attention_layernorm
        self._query_norm, self._key_norm = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
        self._linears = {
            "qkv": (attention.q_proj, attention.k_proj, attention.v_proj),
            "attention_out": (attention.o_proj,),
            "gate_up": (mlp.gate_proj, mlp.up_proj),
            "down": (mlp.down_proj,),
        }
        self.dense: dict[str, DenseProjection] = {name: fuse(*linears) for name, linears in self._linears.items()}

    @property
    def has_whole_blocks(self) -> bool:
        """Whether every matrix's inputs can share steps, so many at a time."""
        return all(dense.weight_OI.shape[1] % BLOCK == 0 for dense in self.dense.values())

    def round_to_int4(self) -> None:
        """See `FusedLM`."""
        for dense in self.dense.values():
            dense.weight_OI.copy_(rounded(dense.weight_OI, 4))

    def tiles(self, *, keep: bool, bits: int) -> LayerWeights:
        """The weights in the compiled layout; what is not kept is freed."""
        tiles = {
            name: in_layout(dense.weight_OI, dense.bias_O, _NUM_PARTS.get(name, 1), bits=bits)
            for name, dense in self.dense.items()
        }
        if not keep:
            self.dense = {}
            for linear in (linear for linears in self._linears.values() for linear in linears):
                linear.weight = nn.Parameter(torch.empty(0), requires_grad=False)
        query_norm, key_norm = (None if norm is None else norm.weight for norm in (self._query_norm, self._key_norm))
        return LayerWeights(
            attention_norm_H=self.attention_norm.weight,
            query_norm_D=query_norm,
            key_norm_D=key_norm,
            mlp_norm_H=self.mlp_norm.weight,
            **tiles,
        )

    def take_back(self, weights: LayerWeights) -> None:
        """The model's own weights again, from their tiles."""
        dtype = self.attention_norm.weight.dtype
        for name, linears in self._linears.items():
            num_outputs = sum(linear.out_features for linear in linears)
            weight_OI, bias_O = untiled(getattr(weights, name), dtype, num_outputs, _NUM_PARTS.get(name, 1))
            self.dense[name] = DenseProjection(weight_OI, None if linears[0].bias is None else bias_O)
            share(self.dense[name], linears)

    def __call__(self, index: int, x_RH: Tensor, attend: Attention) -> Tensor:
        """The residual stream after this layer, from that before it."""
        heads = self.dense["qkv"](_normed(x_RH, self.attention_norm))
        x_RH = x_RH + self.dense["attention_out"](attend(index, self.norm_heads(heads)))
        return x_RH + self.dense["down"](silu_gate(self.dense["gate_up"](_normed(x_RH, self.mlp_norm))))

    def norm_heads(self, heads: Tensor) -> Tensor:
        """Qwen3 normalises each query and each key, others do not."""
        if self._query_norm is None:
            return heads
        heads_RXD = heads.view(len(heads), -1, self._head_size)
        num_key_heads = self._num_key_heads
        num_heads = heads_RXD.shape[1] - 2 * num_key_heads
        query, key, value = torch.split(heads_RXD, [num_heads, num_key_heads, num_key_heads], dim=1)
        normed = (_normed(query, self._query_norm), _normed(key, self._key_norm), value)
        return torch.cat(normed, dim=1).flatten(1)


def _normed(x: Tensor, norm: Any) -> Tensor:
    return rms_norm(x, norm.weight, norm.variance_epsilon)
