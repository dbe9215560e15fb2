"""Writes an `eagle3` drafter in the files that vLLM and SGLang load, as SpecForge names them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from osd.kernels.reference.drafting.eagle3_net import ALL_ENTRIES, Eagle3Config


def write_head(folder: Path, config: Eagle3Config, state: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Write `config.json` and `model.safetensors`.

    Args:
        folder: made if it does not exist.
        config: the drafter's.
        state: a version's tensors.
        dtype: of the floating-point tensors.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ids_R = state["vocab_ids_R"]
    t2d_V = torch.zeros(config.target_vocab_tokens, dtype=torch.bool)
    t2d_V[ids_R] = True
    tensors = {name: tensor.to(dtype).contiguous() for name, tensor in state.items() if name != "vocab_ids_R"} | {
        "d2t": ids_R - torch.arange(len(ids_R)),
        "t2d": t2d_V,
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(_raw_config(config, dtype), indent=2) + "\n")


def _raw_config(config: Eagle3Config, dtype: torch.dtype) -> dict[str, Any]:
    """The inverse of `osd.drafters.eagle3.layout.parse_config`, in the plain form."""
    scaling = {name: value for name, value in config.rope.items() if name != "rope_theta"}
    is_windowed = config.window_tokens != ALL_ENTRIES
    return {
        "architectures": ["LlamaForCausalLMEagle3"],
        "model_type": "llama",
        "hidden_size": config.hidden_size,
        "target_hidden_size": config.target_hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": 1,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_key_heads,
        "head_dim": config.head_size,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "rms_norm_eps": config.norm_eps,
        "max_position_embeddings": config.max_positions,
        "rope_theta": config.rope["rope_theta"],
        "rope_scaling": None if scaling == {"rope_type": "default"} else scaling,
        "use_sliding_window": is_windowed,
        "sliding_window": config.window_tokens if is_windowed else None,
        "tie_word_embeddings": False,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "vocab_size": config.target_vocab_tokens,
        "draft_vocab_size": config.vocab_tokens,
        "norm_before_residual": config.norm_before_residual,
        "norm_before_fc": config.norm_before_fc,
        "fc_norm": config.fc_norm,
        "norm_output": config.norm_output,
        # vLLM reads the first, SGLang the second; see osd.drafters.eagle3.layout for why they differ.
        "eagle_aux_hidden_state_layer_ids": config.target_layers,
        "eagle_config": {
            "eagle_aux_hidden_state_layer_ids": [layer - 1 for layer in config.target_layers],
            "use_aux_hidden_state": True,
        },
    }
