"""EAGLE-3 heads with random weights, in the files of published ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

VOCAB_TOKENS = 24
HIDDEN_SIZE = 32


def head_config(**changes: Any) -> dict[str, Any]:
    """A head's `config.json` in the plain form, for `tests.kit.engine_kit.tiny_llama`."""
    return {
        "architectures": ["LlamaForCausalLMEagle3"],
        "model_type": "llama",
        "hidden_size": HIDDEN_SIZE,
        "intermediate_size": 40,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "hidden_act": "silu",
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500.0,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": VOCAB_TOKENS,
        "draft_vocab_size": 16,
        "eagle_aux_hidden_state_layer_ids": [0, 1, 1],
        **changes,
    }


def speculators_config(**changes: Any) -> dict[str, Any]:
    """The same head's `config.json` as speculators writes it."""
    plain = head_config()
    outer = {name: plain.pop(name) for name in ("draft_vocab_size", "eagle_aux_hidden_state_layer_ids")}
    del plain["architectures"]
    return {
        "architectures": ["Eagle3Speculator"],
        "speculators_model_type": "eagle3",
        "norm_before_residual": False,
        "norm_before_fc": False,
        "norm_output": False,
        "target_hidden_size": None,
        "transformer_layer_config": plain,
        **outer,
        **changes,
    }


def head_tensors(config: Mapping[str, Any], seed: int = 0, num_layers: int = 3) -> dict[str, Tensor]:
    """A head's tensors; shapes as published ones have, see `docs/eagle3.md`."""
    generator = torch.Generator().manual_seed(seed)
    size, inner, num_draft = config["hidden_size"], config["intermediate_size"], config["draft_vocab_size"]
    vocab_tokens, target_size = config["vocab_size"], config.get("target_hidden_size") or size
    queries, keys = (config[name] * config["head_dim"] for name in ("num_attention_heads", "num_key_value_heads"))
    shapes = {
        "fc.weight": (size, num_layers * target_size),
        "midlayer.self_attn.q_proj.weight": (queries, 2 * size),
        "midlayer.self_attn.k_proj.weight": (keys, 2 * size),
        "midlayer.self_attn.v_proj.weight": (keys, 2 * size),
        "midlayer.self_attn.o_proj.weight": (size, queries),
        "midlayer.mlp.gate_proj.weight": (inner, size),
        "midlayer.mlp.up_proj.weight": (inner, size),
        "midlayer.mlp.down_proj.weight": (size, inner),
        "lm_head.weight": (num_draft, size),
    }
    tensors = {name: torch.randn(shape, generator=generator) * shape[1] ** -0.5 for name, shape in shapes.items()}
    for name in ("hidden_norm", "input_layernorm", "post_attention_layernorm"):
        tensors[f"midlayer.{name}.weight"] = 1.0 + 0.2 * torch.randn(size, generator=generator)
    tensors["norm.weight"] = 1.0 + 0.2 * torch.randn(size, generator=generator)
    tensors["lm_head.weight"] *= 4.0  # so that the distributions are not all but flat
    if config.get("norm_before_fc"):
        tensors["input_norm.weight"] = 1.0 + 0.2 * torch.randn(num_layers * target_size, generator=generator)
    for layer in range(num_layers if config.get("fc_norm") else 0):
        tensors[f"fc_norm.{layer}.weight"] = 1.0 + 0.2 * torch.randn(target_size, generator=generator)
    ids_R = torch.randperm(vocab_tokens, generator=generator)[:num_draft].sort().values
    tensors["d2t"] = ids_R - torch.arange(num_draft)
    tensors["t2d"] = torch.zeros(vocab_tokens, dtype=torch.bool)
    tensors["t2d"][ids_R] = True
    return tensors


def save_head(
    folder: Path, config: Mapping[str, Any] | None = None, tensors: Mapping[str, Tensor] | None = None, **changes: Any
) -> Path:
    """Write a head as it is published.

    Args:
        folder: to write to.
        config: its `config.json`; default: `head_config`.
        tensors: default: random ones.
        changes: to the configuration.
    """
    folder.mkdir(parents=True, exist_ok=True)
    raw = {**(config or head_config()), **changes}
    (folder / "config.json").write_text(json.dumps(raw))
    layer = {**raw, **(raw.get("transformer_layer_config") or {})}
    found = head_tensors(layer) if tensors is None else tensors
    save_file({name: tensor.contiguous() for name, tensor in found.items()}, folder / "model.safetensors")
    return folder
