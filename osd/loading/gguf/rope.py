"""Converts a GGUF file's description of rotary embeddings to transformers' `rope_parameters`.

A file describes frequency scaling in one of two ways: by `rope.scaling.*` keys (linear: Chen et al. 2023, arXiv
2306.15595; YaRN: Peng et al. 2023, arXiv 2309.00071), or by a tensor `rope_freqs.weight` by which each frequency is
divided, as for Llama 3.1 and later.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osd.loading.gguf.metadata import ModelKeys

_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""The values of all published Llama 3.1, 3.2 and 3.3 models; only `factor` differs."""


def rope_parameters(keys: ModelKeys, head_size: int, divisors: NDArray[np.float32] | None) -> dict[str, Any]:
    """The RoPE parameters of a model that rotates all dimensions of a head.

    Args:
        keys: the file's metadata.
        head_size: dimensions of a head.
        divisors: `rope_freqs.weight`, `[head_size / 2]`, if the file has it.

    Raises:
        OsdError: transformers cannot express what the file asks for.
    """
    theta = float(keys.get("rope.freq_base", 10000.0))
    scaling = _scaling(keys)
    if divisors is None or np.all(divisors == 1.0):
        return {"rope_theta": theta, **scaling}
    if scaling["rope_type"] != "default":
        raise keys.refusal("rope.scaling.type", "and rope_freqs.weight are both given, which is not supported")
    factor = float(divisors.max())
    llama3 = {"rope_type": "llama3", "factor": factor, **_LLAMA3}
    if divisors.shape != (head_size // 2,) or not np.allclose(divisors, _llama3_divisors(theta, head_size, factor)):
        raise keys.refusal("rope.freq_base", "comes with a rope_freqs.weight that is not Llama 3's scaling")
    return {"rope_theta": theta, **llama3}


def _scaling(keys: ModelKeys) -> dict[str, Any]:
    factor = float(keys.get("rope.scaling.factor") or keys.get("rope.scale_linear") or 1.0)
    kind = keys.get("rope.scaling.type", "linear")
    original = keys.get("rope.scaling.original_context_length")
    keys.ignore(["rope.scaling.finetuned", "rope.scale_linear"])
    keys.expect("rope.scaling.attn_factor", 0.0, 1.0)
    keys.expect("rope.scaling.alpha", 0.0)
    keys.expect("rope.scaling.yarn_log_multiplier", 0.0)
    if kind == "yarn" and factor != 1.0:
        return _yarn(keys, factor, original)
    keys.ignore(f"rope.scaling.yarn_{name}" for name in ("ext_factor", "attn_factor", "beta_fast", "beta_slow"))
    if kind not in ("none", "linear", "yarn"):
        raise keys.refusal("rope.scaling.type", f"is {kind!r}, which is not supported")
    if kind == "none" or factor == 1.0:
        return {"rope_type": "default"}
    return {"rope_type": "linear", "factor": factor}


def _yarn(keys: ModelKeys, factor: float, original: int | None) -> dict[str, Any]:
    keys.expect("rope.scaling.yarn_ext_factor", -1.0, 1.0)
    attention = keys.get("rope.scaling.yarn_attn_factor")
    usual = 1.0 + 0.1 * math.log(factor)
    if attention is not None and not math.isclose(attention, usual, rel_tol=1e-5):
        # llama.cpp always uses the standard value, transformers the file's.
        raise keys.refusal("rope.scaling.yarn_attn_factor", f"is {attention}, not {usual:.6g}; it is not supported")
    return {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": int(original or keys.need("context_length")),
        "beta_fast": float(keys.get("rope.scaling.yarn_beta_fast", 32.0)),
        "beta_slow": float(keys.get("rope.scaling.yarn_beta_slow", 1.0)),
    }


def _llama3_divisors(theta: float, head_size: int, factor: float) -> NDArray[np.float64]:
    """Llama 3's divisor of each frequency: 1 for short wavelengths, `factor` for long ones, a ramp in between."""
    waves = 2 * math.pi * theta ** (np.arange(0, head_size, 2) / head_size)
    low, high, original = _LLAMA3.values()
    ramp = np.clip((original / waves - low) / (high - low), 0.0, 1.0)
    return 1.0 / ((1.0 - ramp) / factor + ramp)
