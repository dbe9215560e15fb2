"""The architectures of GGUF files that are converted, and how each is described in transformers' words.

Only those whose converted models gave llama.cpp's logits are listed; any other is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

Restore = Callable[[str, Tensor, Any], Tensor]


def as_stored(name: str, weight: Tensor, config: Any) -> Tensor:
    """A tensor that is in the file as transformers has it."""
    return weight


def unpermuted(name: str, weight: Tensor, config: Any) -> Tensor:
    """Query and key rows `[heads * 2 * pairs, ...]`, from the order for rotating neighbours to the one for halves.

    In the file the two members of a pair follow each other; transformers has all first members, then all second ones.
    """
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(name.split(".")[-2])
    if heads is None:
        return weight
    pairs = weight.shape[0] // heads // 2
    return weight.reshape(heads, pairs, 2, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


def norms_less_one(name: str, weight: Tensor, config: Any) -> Tensor:
    """Norm weights that the file holds as the whole factor, where transformers adds one to them."""
    return weight - 1 if name.split(".")[-2].endswith("norm") else weight


@dataclass(frozen=True, slots=True)
class Architecture:
    """How one architecture is converted."""

    model_type: str
    """transformers'."""
    keys: Mapping[str, str] = field(default_factory=dict)
    """Further keys of the file by the field of the configuration that they fill."""
    switches: Mapping[str, str] = field(default_factory=dict)
    """Fields that are true where the file has a tensor of this name."""
    expected: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Keys that are supported with these values only."""
    restore: Restore = as_stored
    norm_eps: tuple[str, str] = ("attention.layer_norm_rms_epsilon", "rms_norm_eps")
    """The key of the norms' epsilon, and the field."""


_LLAMA_BIASES = {"attention_bias": "blk.0.attn_q.bias", "mlp_bias": "blk.0.ffn_gate.bias"}

ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture("llama", switches=_LLAMA_BIASES, expected={"expert_count": (0,)}, restore=unpermuted),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3"),
}
