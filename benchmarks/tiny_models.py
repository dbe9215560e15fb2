"""A tiny random model of every causal-LM architecture in transformers."""

from __future__ import annotations

from typing import Any

import torch

from osd.records.errors import reason

VOCAB_TOKENS = 64
CONTEXT_TOKENS = 64
_BIGGEST_PARAMETERS = 5_000_000
"""Above this, the sizes below did not make the configuration small."""
_SIZES: dict[str, int] = {
    **dict.fromkeys(("vocab_size", "ctc_vocab_size"), VOCAB_TOKENS),
    **dict.fromkeys(
        ("hidden_size", "n_embd", "d_model", "dim", "hidden_dim", "embedding_size", "word_embed_proj_dim"), 32
    ),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim"), 48),
    **dict.fromkeys(("ffn_hidden_size", "intermediate_size_mlp", "dense_intermediate_size"), 48),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"), 16),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("moe_num_experts", "zero_expert_num"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts"), 2),
    **dict.fromkeys(("num_decoder_layers", "num_memory_blocks"), 2),
    **dict.fromkeys(("head_dim", "attention_head_size", "d_kv", "v_head_dim", "kv_lora_rank", "q_lora_rank"), 8),
    **dict.fromkeys(("global_head_dim", "linear_key_head_dim", "linear_value_head_dim"), 8),
    **dict.fromkeys(("rotary_dim", "qk_rope_head_dim", "qk_nope_head_dim", "hidden_size_per_layer_input"), 4),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "num_shared_experts", "first_k_dense_replace"), 1),
    **dict.fromkeys(("bos_token_id",), 1),
    **dict.fromkeys(("eos_token_id", "decoder_start_token_id"), 2),
    **dict.fromkeys(("pad_token_id",), 0),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_target_positions"), 128),
    **dict.fromkeys(("vocab_size_per_layer_input",), VOCAB_TOKENS),
    **dict.fromkeys(("sliding_window", "attention_chunk_size", "attention_window", "window_size"), 6),
}
_OWN: dict[str, dict[str, Any]] = {
    "gpt_neo": {"num_layers": 2, "attention_types": [[["global", "local"], 1]]},
    "gemma3n_text": {"num_kv_shared_layers": 0, "laurel_rank": 8},
    "lfm2_moe": {"layer_types": ["full_attention", "conv"]},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "falcon": {"alibi": False},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "ministral": {"head_dim": 8},
    "nemotron": {"head_dim": 8},
    "phi3": {"rope_parameters": None},
}
"""Further options that a kind needs to be small or complete."""


class NotTinyError(Exception):
    """No tiny model of this kind can be made; the message gives the reason."""


def tiny_model(kind: str, **options: Any) -> Any:
    """A random float32 model of a transformers `model_type`.

    Its weights have a large variance, so that a wrong mask or position changes the answers.

    Raises:
        NotTinyError: transformers cannot make one from these sizes.
    """
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    try:
        config_class = CONFIG_MAPPING[kind]
        config = config_class(**{**_small(config_class().to_dict()), **_OWN.get(kind, {}), **options})
        with torch.device("meta"):
            size = AutoModelForCausalLM.from_config(config).num_parameters()
    except Exception as error:  # these classes may raise anything
        raise NotTinyError(f"{type(error).__name__}: {reason(error)}") from error
    if size > _BIGGEST_PARAMETERS:
        raise NotTinyError(f"{size:,} parameters are left of its default configuration")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        try:
            model = load_from(config)
        except Exception as error:
            raise NotTinyError(f"{type(error).__name__}: {reason(error)}") from error
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.data.normal_(0.0, 0.3)
    return model.eval().requires_grad_(False)


def load_from(config: Any) -> Any:
    """A model with random weights, and the attention that `osd.loading.causal_lm` would choose."""
    from transformers import AutoModelForCausalLM

    from osd.loading.causal_lm import attention_for

    return AutoModelForCausalLM.from_config(config, attn_implementation=attention_for(config))


def _small(defaults: dict[str, Any]) -> dict[str, Any]:
    """The arguments that make a configuration and its sub-configurations small."""
    small: dict[str, Any] = {}
    for name, value in defaults.items():
        if isinstance(value, dict) and name.endswith("_config"):
            small[name] = _small(value)
        elif name in _SIZES and (name.endswith("_token_id") or type(value) is int):
            small[name] = _SIZES[name]
    if "kv_lora_rank" in small:  # multi-head latent attention, where only a part of a head is rotated
        rotated = {"head_dim": _SIZES["qk_rope_head_dim"], "num_key_value_heads": _SIZES["num_attention_heads"]}
        small |= {name: size for name, size in rotated.items() if name in defaults}
    return small
