"""What a model's folder says of the type that its weights are stored in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch


class Stored(NamedTuple):
    """A model's weights on disk."""

    dtype: torch.dtype
    """The type that loses nothing which the weights say."""
    fits_kernels: bool
    """Whether a CPU's compiled kernels run such a model; else transformers' forward does."""


LLAMA_IN_BFLOAT16 = Stored(torch.bfloat16, fits_kernels=True)
DEQUANTISED = "osd_dequantised"
"""Key of a `config.json` that osd wrote: the weights were codes of at most eight bits. Rounding them to bfloat16 moves
them less than the rounding that made the codes did, so that counts as the type they are stored in.
"""


def stored_in(folder: Path) -> Stored:
    """Of a model folder, from its `config.json`; of one that transformers cannot read, float32 without kernels."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from osd.models.fused import can_fuse

    try:
        config: Any = AutoConfig.from_pretrained(folder)
        kinds: Any = AutoModelForCausalLM._model_mapping
        kind = kinds[type(config)].__name__
    except Exception:  # loading it says what is wrong
        return Stored(torch.float32, fits_kernels=False)
    return Stored(_dtype_of(folder, config), can_fuse(kind, config))


def _dtype_of(folder: Path, config: Any) -> torch.dtype:
    """Where a configuration names none, what `save_pretrained` of earlier days wrote: float32."""
    if json.loads((folder / "config.json").read_text()).get(DEQUANTISED):
        return torch.bfloat16
    named = getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None)
    if isinstance(named, str):
        named = getattr(torch, named.removeprefix("torch."), None)
    return named if isinstance(named, torch.dtype) else torch.float32
