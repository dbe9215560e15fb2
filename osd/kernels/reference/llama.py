"""A Llama-shaped decoder as few, large operations: fused projections, one rotary table, one cache for all layers.

This defines what every back end's decoder computes: Llama (Touvron et al. 2023, arXiv 2302.13971), with Qwen2's biases
and Qwen3's norms of queries and keys. With few positions per pass, transformers' own forward spends more time between
its matrix products than in them. The weights are those of the transformers model, whose projections become views of the
fused ones.

Shapes: R = B * Q rows, H hidden size, N query heads, M key/value heads, X = N + 2M, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from osd.kernels.reference.attention import Attention
from osd.kernels.reference.projections import DenseProjection, fuse
from osd.kernels.reference.rotary import signed
from osd.kernels.reference.row_ops import rms_norm, silu_gate

_FAMILIES = {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"}
_STATIC_ROPE = {"default", "linear", "llama3", "yarn"}
"""Types of rotary embedding that depend on the position only, so that a table suffices."""


def is_llama(model: Any) -> bool:
    """Whether a transformers causal LM has the shape of `Llama`."""
    return is_llama_kind(type(model).__name__, model.config)


def is_llama_kind(kind: str, config: Any) -> bool:
    """Whether a model that is not loaded yet has the shape of `Llama`.

    Args:
        kind: name of its transformers class.
        config: its configuration.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    return (
        kind in _FAMILIES
        and config.hidden_act == "silu"
        and rope.get("rope_type", "default") in _STATIC_ROPE
        and rope.get("partial_rotary_factor", 1.0) == 1.0
    )


class Heads(NamedTuple):
    """A model's attention parameters."""

    num_heads: int
    """N."""
    num_key_heads: int
    """M."""
    scale: float
    """Factor of the attention scores."""
    reaches: Sequence[int | None]
    """How many positions each layer's attention spans, the query's own included; None: all."""


class Llama:
    """The parts of a model for which `is_llama` holds.

    Args:
        model: a causal LM of transformers.
        max_positions: most positions of a row.
    """

    def __init__(self, model: Any, max_positions: int) -> None:
        config, base = model.config, model.base_model
        self.embedding: nn.Embedding = base.embed_tokens
        self.norm = base.norm
        self.layers = [LlamaLayer(layer) for layer in base.layers]
        self.head = fuse(model.lm_head)
        weight = self.embedding.weight
        cos_1LD, sin_1LD = base.rotary_emb(weight, torch.arange(max_positions, device=weight.device)[None])
        self.rotation = cos_1LD[0], signed(sin_1LD[0])
        self.heads = Heads(
            num_heads=config.num_attention_heads,
            num_key_heads=config.num_key_value_heads,
            scale=base.layers[0].self_attn.scaling,
            reaches=_reaches(config, len(self.layers)),
        )
        self.gate_size: int = config.intermediate_size

    @property
    def like(self) -> Tensor:
        """A tensor with the model's device and dtype."""
        return self.embedding.weight

    def cache_shape(self, num_slots: int, max_len: int) -> tuple[int, int, int, int, int]:
        """Layers, slots, positions, key/value heads and head size of its cache."""
        return len(self.layers), num_slots, max_len, self.heads.num_key_heads, self.rotation[0].shape[-1]

    def __call__(self, ids_BQ: Tensor, attend: Attention, entering: dict[int, Tensor]) -> Tensor:
        """Run all layers; returns the last hidden states after the final norm, `[R, H]`.

        Args:
            ids_BQ: the new tokens.
            attend: computes attention.
            entering: its values become the residual streams `[R, H]` that enter the layers which are its keys.
        """
        x_RH = self.embedding(ids_BQ.flatten())
        for index, layer in enumerate(self.layers):
            if index in entering:
                entering[index] = x_RH
            x_RH = layer(index, x_RH, attend)
        return _normed(x_RH, self.norm)


def _reaches(config: Any, num_layers: int) -> list[int | None]:
    """How many positions each layer's attention spans; None: all."""
    window: int | None = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    kinds = kinds or ["full_attention" if window is None else "sliding_attention"] * num_layers
    return [window if kind == "sliding_attention" else None for kind in kinds]


class LlamaLayer:
    """One decoder layer of transformers; its projections' weights become views of fused ones."""

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self._head_size: int = attention.head_dim
        self._num_key_heads = attention.k_proj.out_features // self._head_size
        self.attention_norm, self.mlp_norm = layer.input_layernorm, layer.post_attention_layernorm
        self.query_norm, self.key_norm = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
        self.linears = {
            "qkv": (attention.q_proj, attention.k_proj, attention.v_proj),
            "attention_out": (attention.o_proj,),
            "gate_up": (mlp.gate_proj, mlp.up_proj),
            "down": (mlp.down_proj,),
        }
        """The fused linears, by their names in `dense`."""
        self.dense: dict[str, DenseProjection] = {name: fuse(*linears) for name, linears in self.linears.items()}

    def __call__(self, index: int, x_RH: Tensor, attend: Attention) -> Tensor:
        """The residual stream after this layer, given that before it."""
        heads = self.dense["qkv"](_normed(x_RH, self.attention_norm))
        x_RH = x_RH + self.dense["attention_out"](attend(index, self.norm_heads(heads)))
        return x_RH + self.dense["down"](silu_gate(self.dense["gate_up"](_normed(x_RH, self.mlp_norm))))

    def norm_heads(self, heads: Tensor) -> Tensor:
        """Normalise each query and key, as Qwen3 does; otherwise return them unchanged."""
        if self.query_norm is None:
            return heads
        heads_RXD = heads.view(len(heads), -1, self._head_size)
        num_key_heads = self._num_key_heads
        num_heads = heads_RXD.shape[1] - 2 * num_key_heads
        query, key, value = torch.split(heads_RXD, [num_heads, num_key_heads, num_key_heads], dim=1)
        normed = (_normed(query, self.query_norm), _normed(key, self.key_norm), value)
        return torch.cat(normed, dim=1).flatten(1)


def _normed(x: Tensor, norm: Any) -> Tensor:
    return rms_norm(x, norm.weight, norm.variance_epsilon)
