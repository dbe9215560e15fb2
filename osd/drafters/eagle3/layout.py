"""The `config.json` of a published EAGLE-3 head, and what of it osd can serve.

Two forms are in use. *Plain* is a Llama's configuration with `draft_vocab_size` (SafeAILab's EAGLE, SpecForge, SGLang).
*speculators* has `speculators_model_type: eagle3`, and the layer's configuration in `transformer_layer_config`.

Which target layers a head reads is named in two ways that differ by one: vLLM's `eagle_aux_hidden_state_layer_ids` at
the top counts the layer that a residual stream *enters*, as osd does; SGLang's, in `eagle_config`, the layer that it
*leaves*.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from osd.kernels.reference.drafting.eagle3_net import ALL_ENTRIES, Eagle3Config, default_layers
from osd.records.errors import OsdError

_ARCHITECTURES = {
    "LlamaForCausalLMEagle3",
    "Eagle3LlamaForCausalLM",
    "LlamaForCausalLM",  # SafeAILab's heads
    "Eagle3Speculator",
    "Eagle3DraftModel",
}
_ROPE_TYPES = {"default", "linear", "llama3", "yarn"}
"""Rotary embeddings that depend on the position only, so that a table suffices."""
_UNSUPPORTED = {
    "attention_bias": "biases in its attention",
    "bias": "biases",
    "qkv_bias": "biases in its attention",
    "mlp_bias": "biases in its MLP",
    "quantization_config": "quantised weights",
    "eh_proj_before_attn": "a projection before its attention",
}
"""Settings that osd cannot serve unless they are absent or false."""


class TargetShape(NamedTuple):
    """What a head must agree on with its target."""

    hidden_size: int
    vocab_tokens: int
    num_layers: int


def parse_config(raw: Mapping[str, Any], target: TargetShape) -> Eagle3Config:
    """The sizes of a published head.

    Args:
        raw: its `config.json`.
        target: the target that it is to serve.

    Raises:
        OsdError: it is no EAGLE-3 head, is for another target, or has a part that osd does not have.
    """
    is_speculators = "speculators_model_type" in raw
    layer: Mapping[str, Any] = raw.get("transformer_layer_config") or {} if is_speculators else raw
    _check_architecture(raw, layer, is_speculators=is_speculators)
    hidden_size, num_heads = _number(layer, "hidden_size"), _number(layer, "num_attention_heads")
    config = Eagle3Config(
        hidden_size=hidden_size,
        target_hidden_size=int(raw.get("target_hidden_size") or hidden_size),
        target_layers=_target_layers(raw, target),
        num_heads=num_heads,
        num_key_heads=int(layer.get("num_key_value_heads") or num_heads),
        head_size=int(layer.get("head_dim") or hidden_size // num_heads),
        intermediate_size=_number(layer, "intermediate_size"),
        vocab_tokens=int(raw.get("draft_vocab_size") or _number(layer, "vocab_size")),
        target_vocab_tokens=_number(layer, "vocab_size"),
        norm_eps=float(layer.get("rms_norm_eps", 1e-6)),
        rope=_rope(layer),
        max_positions=int(layer.get("max_position_embeddings", 2048)),
        norm_before_residual=_norm_before_residual(raw, is_speculators=is_speculators),
        norm_before_fc=_flag(raw, "norm_before_fc"),
        fc_norm=_flag(raw, "fc_norm"),
        norm_output=_flag(raw, "norm_output", "return_hidden_post_norm"),
        window_tokens=_window(layer),
    )
    if config.target_hidden_size != target.hidden_size:
        raise OsdError(
            f"the head was made for a target of hidden size {config.target_hidden_size}, this one has "
            f"{target.hidden_size}"
        )
    if config.target_vocab_tokens != target.vocab_tokens:
        raise OsdError(
            f"the head was made for a vocabulary of {config.target_vocab_tokens} tokens, the target has "
            f"{target.vocab_tokens}"
        )
    return config


def _check_architecture(raw: Mapping[str, Any], layer: Mapping[str, Any], *, is_speculators: bool) -> None:
    """Refuse what is no EAGLE-3 head, or one with parts that osd does not have."""
    if is_speculators and raw["speculators_model_type"] != "eagle3":
        raise OsdError(f"it is a {raw['speculators_model_type']!r} speculator, not an 'eagle3' one")
    for name in raw.get("architectures") or ():
        if name not in _ARCHITECTURES:
            raise OsdError(f"its architecture {name} is not supported; only heads with a Llama layer are")
    if (kind := layer.get("model_type", "llama")) != "llama":
        raise OsdError(f"its layer is of type {kind!r}; only 'llama' is supported")
    if (num_layers := layer.get("num_hidden_layers", 1)) != 1:
        raise OsdError(f"it has {num_layers} layers; only heads of one layer are supported")
    if (activation := layer.get("hidden_act", "silu")) != "silu":
        raise OsdError(f"its activation is {activation!r}; only 'silu' is supported")
    for name, what in _UNSUPPORTED.items():
        if layer.get(name) or _flag(raw, name):
            raise OsdError(f"it has {what} ({name}), which osd does not support")
    if raw.get("logit_scale", 1.0) != 1.0:
        raise OsdError("its logits are scaled (logit_scale), which osd does not support")
    if not (raw.get("eagle_config") or {}).get("use_aux_hidden_state", True):
        raise OsdError("it reads the target's last hidden state only (use_aux_hidden_state); it is no EAGLE-3 head")


def _number(section: Mapping[str, Any], name: str) -> int:
    value = section.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise OsdError(f"its config.json has no whole number {name!r}; is it an EAGLE-3 head?")
    return value


def _target_layers(raw: Mapping[str, Any], target: TargetShape) -> list[int]:
    """The layers whose input residual streams the head reads, in osd's and vLLM's counting."""
    layers = raw.get("eagle_aux_hidden_state_layer_ids")
    if not layers and (left := (raw.get("eagle_config") or {}).get("eagle_aux_hidden_state_layer_ids")):
        layers = [layer + 1 for layer in left]
    layers = layers or default_layers(target.num_layers)
    if beyond := [layer for layer in layers if not 0 <= layer < target.num_layers]:
        raise OsdError(
            f"it reads what enters layer {beyond[0]} of the target (eagle_aux_hidden_state_layer_ids), which has "
            f"{target.num_layers} layers"
        )
    return list(layers)


def _norm_before_residual(raw: Mapping[str, Any], *, is_speculators: bool) -> bool:
    if is_speculators and "norm_before_residual" not in raw:
        raise OsdError("its config.json lacks norm_before_residual, which may be either; add it as it was trained")
    return _flag(raw, "norm_before_residual")


def _flag(raw: Mapping[str, Any], *names: str) -> bool:
    """Whether a setting is on by one of its names, at the top or in `eagle_config`."""
    return any(section.get(name) for name in names for section in (raw, raw.get("eagle_config") or {}))


def _rope(layer: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary settings in transformers' present form, from that or from `rope_theta` and `rope_scaling`."""
    settings = dict(layer.get("rope_parameters") or layer.get("rope_scaling") or {})
    settings.setdefault("rope_type", settings.pop("type", "default"))
    settings.setdefault("rope_theta", layer.get("rope_theta", 10_000.0))
    if settings["rope_type"] not in _ROPE_TYPES or settings.get("partial_rotary_factor", 1.0) != 1.0:
        raise OsdError(f"its rotary embedding {settings['rope_type']!r} is not supported; {sorted(_ROPE_TYPES)} are")
    return settings


def _window(layer: Mapping[str, Any]) -> int:
    """How many entries the head attends to: all, unless it says that its layer has a sliding window."""
    is_sliding = layer.get("use_sliding_window") or (layer.get("layer_types") or [""])[0] == "sliding_attention"
    return int(layer.get("sliding_window") or ALL_ENTRIES) if is_sliding else ALL_ENTRIES
