"""Loads a causal LM from a folder; chooses its device, dtype and attention implementation."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from osd.kernels.processor import Cpu, this_cpu, torch_multiplies_bfloat16
from osd.loading.resolve import check_model_folder
from osd.loading.stored import LLAMA_IN_BFLOAT16, Stored
from osd.records.errors import OsdError, reason

_log = logging.getLogger(__name__)
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def choose_device(name: str) -> torch.device:
    """The torch device of a setting; 'auto' takes a GPU if there is one.

    Raises:
        OsdError: the device does not exist or cannot be used.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except Exception as error:
        raise OsdError(f"device {name!r} cannot be used: {reason(error)}; try --device cpu") from None
    return device


def choose_dtype(
    name: str, device: torch.device, stored: Stored = LLAMA_IN_BFLOAT16, cpu: Cpu | None = None
) -> torch.dtype:
    """The dtype of the weights in memory; 'auto' takes the fastest that is no less exact than the stored one.

    On a CPU 'auto' is bfloat16 for weights stored in bfloat16, if this CPU multiplies bfloat16 as fast as it reads it:
    in torch with the right instructions, in the compiled kernels always. Anything else is float32, which represents all
    stored values exactly; rounding float16 or float32 to bfloat16 has to be asked for. On a GPU 'auto' is bfloat16, or
    float16 where the GPU lacks bfloat16. With 'int4', whatever is not quantised is bfloat16.

    Args:
        name: the setting `target.dtype`.
        device: where the model runs.
        stored: how the weights are stored.
        cpu: what the CPU supports; None: this machine's.

    Raises:
        OsdError: 'int4' on a device other than a CPU.
    """
    if name == "int4":
        if device.type != "cpu":
            raise OsdError(f"target.dtype int4 is for CPUs, and the device is {device}; take auto or --device cpu")
        return torch.bfloat16
    if name != "auto":
        return _DTYPES[name]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if stored.dtype != torch.bfloat16:
        return torch.float32
    cpu = cpu or this_cpu()
    is_fast = cpu.multiplies_bfloat16 or (stored.fits_kernels and cpu.has_kernels)
    return torch.bfloat16 if is_fast else torch.float32


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether torch is faster in bfloat16 than in float32 on this device."""
    return torch.cuda.is_bf16_supported() if device.type == "cuda" else torch_multiplies_bfloat16()


def attention_for(config: Any) -> str:
    """The attention implementation to ask of transformers: 'sdpa', or 'eager' where the model lacks it.

    Models that cap attention scores or have attention sinks lack it, and those that bring their own code may.
    """
    from transformers import AutoModelForCausalLM

    kinds: Any = AutoModelForCausalLM._model_mapping
    return "sdpa" if type(config) in kinds and getattr(kinds[type(config)], "_supports_sdpa", False) else "eager"


def load_causal_lm(folder: Path, *, dtype: torch.dtype, device: torch.device, trust_remote_code: bool = False) -> Any:
    """Load a model in eval mode with frozen parameters.

    Args:
        folder: the model's.
        dtype: of the weights in memory.
        device: where they are.
        trust_remote_code: run Python code that the folder holds, where the model needs it.

    Raises:
        OsdError: the folder is incomplete, or transformers cannot load it as a causal LM.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    check_model_folder(folder)
    try:
        attention = attention_for(AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code))
        model, loaded = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation=attention,
            output_loading_info=True,
            trust_remote_code=trust_remote_code,
        )
    except Exception as error:
        raise OsdError(f"cannot load a causal LM from {folder}: {reason(error)}") from error
    if missing := sorted(loaded["missing_keys"]):
        raise OsdError(f"the weights in {folder} lack {missing[0]!r}; copy the model again")
    _check_unused(folder, model, loaded["unexpected_keys"])
    return model.to(device).eval().requires_grad_(False)


def _check_unused(folder: Path, model: Any, names: Iterable[str]) -> None:
    """Report weights in the folder that the model did not load.

    Raises:
        OsdError: a weight belongs to an existing module that was built without it, such as the bias of a projection
            that `config.json` describes as having none. Others are only logged.
    """
    unused, modules = sorted(names), dict(model.named_modules())
    for name in unused:
        parent, _, leaf = name.rpartition(".")
        module = modules.get(parent)
        if module is not None and getattr(module, leaf, module) is None:
            raise OsdError(
                f"the weights in {folder} have {name!r}, and its config.json has no place for it; correct it"
            )
    if unused:
        _log.warning("%s weights in %s are not used, such as %s", len(unused), folder, unused[0])
