"""The dtype in which a model folder stores its weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch


class Stored(NamedTuple):
    """How a model's weights are stored on disk."""

    dtype: torch.dtype
    """The narrowest type that represents every stored value."""
    fits_kernels: bool
    """Whether the CPU's compiled kernels can run this model; otherwise transformers' forward does."""


LLAMA_IN_BFLOAT16 = Stored(torch.bfloat16, fits_kernels=True)
DEQUANTISED = "osd_dequantised"
"""Key in a `config.json` written by osd: the weights were quantised to at most eight bits. Rounding such weights to
bfloat16 changes them less than the quantisation did, so they count as stored in bfloat16.
"""


def stored_in(folder: Path, *, trust_remote_code: bool = False) -> Stored:
    """Read from a folder's `config.json`; float32 without kernels if transformers cannot read it.

    Args:
        folder: the model's.
        trust_remote_code: run Python code that the folder holds, where its configuration needs it.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    from osd.kernels.reference.llama import is_llama_kind

    try:
        config: Any = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        kinds: Any = AutoModelForCausalLM._model_mapping
        kind = kinds[type(config)].__name__ if type(config) in kinds else ""
    except Exception:  # loading the model reports what is wrong
        return Stored(torch.float32, fits_kernels=False)
    return Stored(_dtype_of(folder, config), is_llama_kind(kind, config))


def _dtype_of(folder: Path, config: Any) -> torch.dtype:
    """The dtype that a configuration names; without one float32, which older `save_pretrained` wrote unnamed."""
    if json.loads((folder / "config.json").read_text()).get(DEQUANTISED):
        return torch.bfloat16
    named = getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None)
    if isinstance(named, str):
        named = getattr(torch, named.removeprefix("torch."), None)
    return named if isinstance(named, torch.dtype) else torch.float32
