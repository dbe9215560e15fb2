"""A Llama-shaped decoder run as few, large operations: fused projections, joint rotation, one cache for all layers.

At a few positions a pass, transformers' own forward spends more time between its matrix products than in them. This
one reads the same weights: the transformers model's projections become views of the fused ones.

Shapes: B rows, Q new positions, L cached positions seen, H hidden size, N query heads, M key/value heads,
G = N / M query heads that share one key head, P = Q * G query rows of a key head, X = N + 2M, D head size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from osd.models.flat_cache import FlatCache, LayerWindow
from osd.models.norms import rms_norm
from osd.models.projections import Projection, fuse, pack
from osd.models.rotary import rotate, signed
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
    """

    def __init__(self, model: Any, *, num_slots: int, max_positions: int, max_len: int) -> None:
        config, base = model.config, model.base_model
        self._embedding: nn.Embedding = base.embed_tokens
        self._norm = base.norm
        kinds = getattr(config, "layer_types", None) or ["full_attention"] * len(base.layers)
        if getattr(config, "layer_types", None) is None and getattr(config, "sliding_window", None) is not None:
            kinds = ["sliding_attention"] * len(base.layers)
        heads = config.num_attention_heads, config.num_key_value_heads
        self._layers = [_Layer(layer, *heads, kind) for layer, kind in zip(base.layers, kinds, strict=True)]
        self._dense_head = fuse(model.lm_head)
        self._head: Projection = self._dense_head
        self._num_heads, self._num_key_heads = heads
        weight = self._embedding.weight
        cos_1LD, sin_1LD = base.rotary_emb(weight, torch.arange(max_positions, device=weight.device)[None])
        self._cos_LD, self._sin_LD = cos_1LD[0], signed(sin_1LD[0])
        self.cache = FlatCache(len(kinds), num_slots, max_len, self._num_key_heads, cos_1LD.shape[-1], like=weight)

    def pack(self, *, keep: bool) -> None:
        """Copy the weights into the layout that is read fastest; after every change of them, again.

        Args:
            keep: False: they will not change any more, and the model's own stay only in embedding and head.
        """
        for layer in self._layers:
            layer.pack(keep=keep)
        self._head = pack(self._dense_head)

    def __call__(
        self, ids_BQ: Tensor, positions_BQ: Tensor, window: PassWindow, masks_BQL: Mapping[str, Tensor], *, logits: str
    ) -> tuple[Tensor | None, Tensor]:
        """Logits (see `SlotModel.forward`) and last hidden states `[B, Q, H]`.

        Args:
            ids_BQ: new tokens.
            positions_BQ: where they stand, within `max_positions`.
            window: which cache entries are written and seen.
            masks_BQL: where layers of a kind may look; a kind that is not there may look at all that is seen.
            logits: "all", "last" or "none".
        """
        turn = self._rotation(positions_BQ)
        masks_B1PL = {kind: self._additive(mask_BQL) for kind, mask_BQL in masks_BQL.items()}
        x_BQH = self._embedding(ids_BQ)
        for layer, cached in zip(self._layers, self.cache.at(window), strict=True):
            x_BQH = layer(x_BQH, turn, masks_B1PL.get(layer.kind), cached)
        hidden_BQH = _norm(x_BQH, self._norm)
        if logits == "none":
            return None, hidden_BQH
        return self._head(hidden_BQH if logits == "all" else hidden_BQH[:, -1:]), hidden_BQH

    def _rotation(self, positions_BQ: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines of every head, `[B, Q, X, D]`; values are turned by nothing."""
        cos_BQ1D, sin_BQ1D = self._cos_LD[positions_BQ][:, :, None], self._sin_LD[positions_BQ][:, :, None]
        num_turned = self._num_heads + self._num_key_heads
        still = cos_BQ1D.new_ones((*cos_BQ1D.shape[:2], self._num_key_heads, cos_BQ1D.shape[-1]))
        cos_BQXD = torch.cat((cos_BQ1D.expand(-1, -1, num_turned, -1), still), dim=2)
        return cos_BQXD, torch.cat((sin_BQ1D.expand(-1, -1, num_turned, -1), torch.zeros_like(still)), dim=2)

    def _additive(self, mask_BQL: Tensor) -> Tensor:
        """0 where a query row may look, -inf elsewhere; made once a pass, not once a layer."""
        bias_BQL = torch.zeros(mask_BQL.shape, dtype=self._cos_LD.dtype, device=mask_BQL.device)
        bias_BQL.masked_fill_(~mask_BQL, -torch.inf)
        return bias_BQL.repeat_interleave(self._num_heads // self._num_key_heads, dim=1)[:, None]


class _Layer:
    """One decoder layer.

    Args:
        layer: the transformers layer; its projections' weights become views.
        num_heads: N.
        num_key_heads: M.
        kind: "full_attention" or "sliding_attention": which mask holds.
    """

    def __init__(self, layer: Any, num_heads: int, num_key_heads: int, kind: str) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.kind = kind
        self._num_heads, self._num_key_heads = num_heads, num_key_heads
        self._scale: float = attention.scaling
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

    def __call__(
        self,
        x_BQH: Tensor,
        turn: tuple[Tensor, Tensor],
        mask_B1PL: Tensor | None,
        cached: LayerWindow,
    ) -> Tensor:
        """The residual stream after this layer, `[B, Q, H]`.

        Args:
            x_BQH: before it.
            turn: the pass's cosines and sines.
            mask_B1PL: added to the scores.
            cached: this layer's cache.
        """
        num_rows, num_new, _ = x_BQH.shape
        num_heads, num_key_heads = self._num_heads, self._num_key_heads
        heads_BQXD = self._qkv(_norm(x_BQH, self._attention_norm)).view(
            num_rows, num_new, num_heads + 2 * num_key_heads, -1
        )
        if self._query_norm is not None:  # Qwen3 normalises each head
            query, key, value = torch.split(heads_BQXD, [num_heads, num_key_heads, num_key_heads], dim=2)
            heads_BQXD = torch.cat((_norm(query, self._query_norm), _norm(key, self._key_norm), value), dim=2)
        heads_BQXD = rotate(heads_BQXD, *turn)
        cached.write(heads_BQXD[:, :, num_heads:])
        # The queries that share a key head stand side by side as further query rows of it: no key is repeated.
        query_BQMGD = heads_BQXD[:, :, :num_heads].view(num_rows, num_new, num_key_heads, -1, heads_BQXD.shape[-1])
        attended_BMPD = F.scaled_dot_product_attention(
            query_BQMGD.transpose(1, 2).flatten(2, 3),
            cached.keys_BMLD,
            cached.values_BMLD,
            attn_mask=mask_B1PL,
            scale=self._scale,
        )
        attended_BQMGD = attended_BMPD.view(num_rows, num_key_heads, num_new, -1, attended_BMPD.shape[-1]).transpose(
            1, 2
        )
        x_BQH = self._attention_out.added_to(x_BQH, attended_BQMGD.flatten(2))
        gate, up = self._gate_up(_norm(x_BQH, self._mlp_norm)).chunk(2, dim=-1)
        return self._down.added_to(x_BQH, F.silu(gate).mul_(up))


def _norm(x: Tensor, norm: Any) -> Tensor:
    return rms_norm(x, norm.weight, norm.variance_epsilon)
