"""A Llama-shaped decoder run as few, large operations: fused projections, one rotary table, one cache for all layers.

At a few positions a pass, transformers' own forward spends more time between its matrix products than in them. This
one reads the same weights: the transformers model's projections become views of the fused ones.

Shapes: B rows, Q new positions, R = B * Q (at least, where padding is faster), H hidden size, N query heads, M
key/value heads, X = N + 2M, D head size.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from osd.models import cpu_ops
from osd.models.attention import Attention, SdpaAttention
from osd.models.flat_cache import FlatCache
from osd.models.projections import Projection, fuse, pack
from osd.models.rotary import signed
from osd.models.row_ops import RowOps, TorchRowOps
from osd.models.slot_cache import PassWindow

_FAMILIES = {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"}
_STATIC_ROPE = {"default", "linear", "llama3", "yarn"}
"""Rotary embeddings that depend on the position only: a table says it all."""


def is_supported(model: Any) -> bool:
    """Whether a transformers model has the shape that `FusedLM` runs."""
    rope = getattr(model.config, "rope_parameters", None) or {}
    return (
        type(model).__name__ in _FAMILIES
        and model.config.hidden_act == "silu"
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
        self.cache = FlatCache(len(self._layers), num_slots, max_len, num_key_heads, cos_1LD.shape[-1], like=weight)
        self._num_key_heads = num_key_heads
        self._heads = {
            "num_heads": config.num_attention_heads,
            "scale": base.layers[0].self_attn.scaling,
            "reaches": _reaches(config, len(self._layers)),
        }
        self._ops: RowOps = TorchRowOps()
        self._few: cpu_ops.CpuAttention | None = None
        if compiled and cpu_ops.fits(weight):
            self._ops = cpu_ops.CpuRowOps(weight.dtype)
            self._few = cpu_ops.CpuAttention(self.cache, *self._rotation, **self._heads)

    def pack(self, *, keep: bool) -> None:
        """Copy the weights into the layout that is read fastest; after every change of them, again.

        Args:
            keep: False: they will not change any more, and the model's own stay only in embedding and head.
        """
        for layer in self._layers:
            layer.pack(keep=keep)
        self._head = pack(self._dense_head)

    def __call__(self, ids_BQ: Tensor, window: PassWindow, *, logits: str) -> tuple[Tensor | None, Tensor]:
        """Logits (see `SlotModel.forward`) and last hidden states `[B, Q, H]`.

        Args:
            ids_BQ: new tokens.
            window: which cache entries are written and seen.
            logits: "all", "last" or "none".
        """
        num_rows, num_new = ids_BQ.shape
        ids_R = ids_BQ.flatten()
        attend: Attention
        if self._few is not None and self._few.suits(window):
            self._few.begin(window)
            attend = self._few
            ids_R = F.pad(ids_R, (0, max(0, cpu_ops.FEWEST_VECTORS - len(ids_R))))
        else:
            attend = SdpaAttention(
                self.cache, window, *self._rotation, num_key_heads=self._num_key_heads, **self._heads
            )
        x_RH = self._embedding(ids_R)
        for index, layer in enumerate(self._layers):
            x_RH = layer(index, x_RH, attend, self._ops)
        hidden_RH = _norm(self._ops, x_RH, self._norm)
        hidden_BQH = hidden_RH[: num_rows * num_new].view(num_rows, num_new, -1)
        if logits == "none":
            return None, hidden_BQH
        return self._head(hidden_BQH if logits == "all" else hidden_BQH[:, -1:]), hidden_BQH


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
        self._attention_norm, self._mlp_norm = layer.input_layernorm, layer.post_attention_layernorm
        self._query_norm, self._key_norm = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
        self._linears = {
            "_qkv": (attention.q_proj, attention.k_proj, attention.v_proj),
            "_attention_out": (attention.o_proj,),
            "_gate_up": (mlp.gate_proj, mlp.up_proj),
            "_down": (mlp.down_proj,),
        }
        self._dense = {name: fuse(*linears) for name, linears in self._linears.items()}
        self._qkv, self._attention_out, self._gate_up, self._down = (
            cast(Projection, dense) for dense in self._dense.values()
        )

    def pack(self, *, keep: bool) -> None:
        """See `FusedLM.pack`; what is not kept is freed where a packed copy was made."""
        for name, dense in list(self._dense.items()):
            packed = pack(dense)
            setattr(self, name, packed)
            if packed is not dense and not keep:
                del self._dense[name]
                for linear in self._linears[name]:
                    linear.weight = nn.Parameter(torch.empty(0), requires_grad=False)

    def __call__(self, index: int, x_RH: Tensor, attend: Attention, ops: RowOps) -> Tensor:
        """The residual stream after this layer, from that before it."""
        heads = self._qkv(_norm(ops, x_RH, self._attention_norm))
        if self._query_norm is not None:
            heads = self._norm_heads(ops, heads)
        x_RH = self._attention_out.added_to(x_RH, attend(index, heads))
        return self._down.added_to(x_RH, ops.gate(self._gate_up(_norm(ops, x_RH, self._mlp_norm))))

    def _norm_heads(self, ops: RowOps, heads: Tensor) -> Tensor:
        """Qwen3 normalises each query and each key."""
        heads_RXD = heads.view(len(heads), -1, self._head_size)
        num_key_heads = self._num_key_heads
        num_heads = heads_RXD.shape[1] - 2 * num_key_heads
        query, key, value = torch.split(heads_RXD, [num_heads, num_key_heads, num_key_heads], dim=1)
        normed = (_norm(ops, query, self._query_norm), _norm(ops, key, self._key_norm), value)
        return torch.cat(normed, dim=1).flatten(1)


def _norm(ops: RowOps, x: Tensor, norm: Any) -> Tensor:
    return ops.norm(x, norm.weight, norm.variance_epsilon)
