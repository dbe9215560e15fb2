"""The GGUF architectures that can be converted, each with its counterpart in transformers.

Listed are only those whose converted models reproduced llama.cpp's logits; others are refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from osd.loading.gguf.metadata import ModelKeys

Restore = Callable[[str, Tensor, Any], Tensor]


def as_stored(name: str, weight: Tensor, config: Any) -> Tensor:
    """Return a tensor unchanged: the file stores it as transformers does."""
    return weight


def unpermuted(name: str, weight: Tensor, config: Any) -> Tensor:
    """Reorder query and key rows `[heads * 2 * pairs, ...]` from adjacent rotary pairs to rotary halves.

    In the file the two members of a rotary pair are adjacent rows; in transformers all first members of a head precede
    all second members.
    """
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(name.split(".")[-2])
    if heads is None:
        return weight
    pairs = weight.shape[0] // heads // 2
    return weight.reshape(heads, pairs, 2, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


def norms_less_one(name: str, weight: Tensor, config: Any) -> Tensor:
    """Norm weights minus one: the file stores the whole factor, transformers adds one to its weight."""
    return weight - 1 if name.split(".")[-2].endswith("norm") else weight


Complete = Callable[[ModelKeys, dict[str, Any]], None]


def _nothing_more(keys: ModelKeys, fields: dict[str, Any]) -> None:
    """Add no fields: the common ones describe the architecture fully."""


def _windowed(keys: ModelKeys, fields: dict[str, Any]) -> None:
    """Sliding-window attention in all layers."""
    fields["sliding_window"] = keys.get("attention.sliding_window") or None


def _gemma3(keys: ModelKeys, fields: dict[str, Any]) -> None:
    """Of each six layers five have a sliding window with its own RoPE base; the sixth has full attention."""
    fields["sliding_window"] = keys.need("attention.sliding_window")
    keys.expect("attention.sliding_window_pattern", 6)
    keys.expect("final_logit_softcapping", 0.0)
    window_base = float(keys.get("rope.freq_base_swa", 10000.0))
    fields["rope_parameters"] = {
        "full_attention": fields["rope_parameters"],
        "sliding_attention": {"rope_type": "default", "rope_theta": window_base},
    }
    # The file lacks the attention scale. Of all published sizes only the 27B's is not derived from head_dim.
    is_27b = fields["num_hidden_layers"] == 62
    per_head = fields["hidden_size"] // fields["num_attention_heads"]
    fields["query_pre_attn_scalar"] = per_head if is_27b else fields["head_dim"]


@dataclass(frozen=True, slots=True)
class Architecture:
    """How one architecture is converted."""

    model_type: str
    """The `model_type` in transformers."""
    keys: Mapping[str, str] = field(default_factory=dict)
    """Additional metadata keys, each with the configuration field that it fills."""
    switches: Mapping[str, str] = field(default_factory=dict)
    """Configuration fields that are true if the file has the tensor of this name."""
    expected: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Metadata keys of which only these values are supported."""
    restore: Restore = as_stored
    complete: Complete = _nothing_more
    """Fills in the fields particular to this architecture."""
    norm_eps: tuple[str, str] = ("attention.layer_norm_rms_epsilon", "rms_norm_eps")
    """The metadata key of the norms' epsilon, and its configuration field."""


_LAYER_NORM = "attention.layer_norm_epsilon"
_LLAMA_BIASES = {"attention_bias": "blk.0.attn_q.bias", "mlp_bias": "blk.0.ffn_gate.bias"}
_GRANITE_SCALES = {
    "attention.scale": "attention_multiplier",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
}

ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture("llama", switches=_LLAMA_BIASES, expected={"expert_count": (0,)}, restore=unpermuted),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3"),
    "phi3": Architecture("phi3", complete=_windowed),
    "gemma": Architecture("gemma", restore=norms_less_one),
    "gemma3": Architecture("gemma3_text", restore=norms_less_one, complete=_gemma3),
    "granite": Architecture("granite", keys=_GRANITE_SCALES, switches=_LLAMA_BIASES, restore=unpermuted),
    "smollm3": Architecture("smollm3", switches=_LLAMA_BIASES, restore=unpermuted),
    "olmo2": Architecture("olmo2"),
    "starcoder2": Architecture(
        "starcoder2", switches={"use_bias": "blk.0.attn_q.bias"}, norm_eps=(_LAYER_NORM, "norm_epsilon")
    ),
    "command-r": Architecture(
        "cohere",
        keys={"logit_scale": "logit_scale"},
        switches={"use_qk_norm": "blk.0.attn_q_norm.weight"},
        norm_eps=(_LAYER_NORM, "layer_norm_eps"),
    ),
}
