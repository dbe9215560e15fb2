"""EAGLE-3's layer in plain operations, written from the paper and the layout of published files.

It has no cache and no batch: each call runs the whole sequence, with softmax by hand.

Shapes: T entries, H hidden size, N heads, D head size.
"""

# ruff: noqa: N803, N806

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


def _turned(x_NTD: Tensor, theta: float) -> Tensor:
    """Rotary embedding by complex numbers: element d is paired with d + D / 2."""
    half = x_NTD.shape[-1] // 2
    angles_Td = torch.arange(x_NTD.shape[1])[:, None] * theta ** (-torch.arange(half) / half)
    turned = torch.complex(x_NTD[..., :half], x_NTD[..., half:]) * torch.polar(torch.ones(()), angles_Td)
    return torch.cat((turned.real, turned.imag), dim=-1)


def plain_fused(raw: Mapping[str, Any], w: Mapping[str, Tensor], hidden_TJ: Tensor) -> Tensor:
    """What entries read of the target's states, `[T, H]`."""
    eps = raw["rms_norm_eps"]
    if raw.get("norm_before_fc"):
        hidden_TJ = rms(hidden_TJ, w["input_norm.weight"], eps)
    if raw.get("fc_norm"):
        parts = enumerate(hidden_TJ.chunk(3, dim=1))
        hidden_TJ = torch.cat([rms(one, w[f"fc_norm.{n}.weight"], eps) for n, one in parts], dim=1)
    return hidden_TJ @ w["fc.weight"].T


def plain_outputs(raw: Mapping[str, Any], w: Mapping[str, Tensor], embedded_TH: Tensor, hidden_TH: Tensor) -> Tensor:
    """The layer's outputs `[T, H]`, before the final norm.

    Args:
        raw: the head's `config.json`.
        w: its tensors.
        embedded_TH: embeddings of the tokens after the entries.
        hidden_TH: `fc` of the target's states, or outputs of the entries before.
    """
    eps, size = raw["rms_norm_eps"], raw["head_dim"]
    normed_TH = rms(hidden_TH, w["midlayer.hidden_norm.weight"], eps)
    both = torch.cat((rms(embedded_TH, w["midlayer.input_layernorm.weight"], eps), normed_TH), dim=1)
    q, k, v = (
        (both @ w[f"midlayer.self_attn.{name}_proj.weight"].T).view(len(both), -1, size).transpose(0, 1)
        for name in "qkv"
    )
    shared_by = raw["num_attention_heads"] // raw["num_key_value_heads"]
    q, k = _turned(q, raw["rope_theta"]), _turned(k, raw["rope_theta"]).repeat_interleave(shared_by, 0)
    scores = q @ k.transpose(1, 2) / math.sqrt(size)
    scores = scores + torch.full(scores.shape[1:], -math.inf).triu(1)
    mixed = (scores.softmax(-1) @ v.repeat_interleave(shared_by, 0)).transpose(0, 1).flatten(1)
    x = (normed_TH if raw.get("norm_before_residual") else hidden_TH) + mixed @ w["midlayer.self_attn.o_proj.weight"].T
    y = rms(x, w["midlayer.post_attention_layernorm.weight"], eps)
    gate, up = (y @ w[f"midlayer.mlp.{name}_proj.weight"].T for name in ("gate", "up"))
    return x + (gate * gate.sigmoid() * up) @ w["midlayer.mlp.down_proj.weight"].T
