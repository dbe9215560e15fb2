"""Loading a causal LM from a folder, with the type and device that serve it best."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from osd.kernels.cpu.processor import Cpu, this_cpu, torch_multiplies_bfloat16
from osd.loading.resolve import check_model_folder
from osd.loading.stored import LLAMA_IN_BFLOAT16, Stored
from osd.records.errors import OsdError
from osd.records.reason import reason

_log = logging.getLogger(__name__)
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def choose_device(name: str) -> torch.device:
    """'auto' takes a GPU when there is one.

    Raises:
        OsdError: no such device.
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
    """'auto' takes what is fastest and no less exact than stored. What 'int4' leaves is bfloat16.

    On a CPU that is bfloat16 for weights stored in it, wherever they are multiplied as fast as they are read: by torch
    where there are instructions for it, by compiled kernels everywhere. All others are served in float32, which holds
    them exactly: to round float16 or float32 to bfloat16 has to be asked for. A GPU takes bfloat16, or float16 where it
    has no bfloat16, whatever is stored.

    Args:
        name: `target.dtype`.
        device: where the model runs.
        stored: how its weights are stored.
        cpu: what a CPU can do; None: this one's.

    Raises:
        OsdError: 'int4' on a device that is no CPU.
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
    """Whether torch's operations are faster in bfloat16 than in float32."""
    return torch.cuda.is_bf16_supported() if device.type == "cuda" else torch_multiplies_bfloat16()


def attention_for(config: Any) -> str:
    """How transformers' model of a configuration attends: torch's own attention, or plain products where it has none.

    Some models cap their scores or have sinks, which torch's attention does not.
    """
    from transformers import AutoModelForCausalLM

    kinds: Any = AutoModelForCausalLM._model_mapping
    has_it = type(config) not in kinds or getattr(kinds[type(config)], "_supports_sdpa", False)
    return "sdpa" if has_it else "eager"


def load_causal_lm(folder: Path, *, dtype: torch.dtype, device: torch.device) -> Any:
    """A model in eval mode, with frozen parameters, and with torch's attention where it can have that.

    Raises:
        OsdError: the folder is not a whole model, or transformers cannot load it as a causal LM.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    check_model_folder(folder)
    try:
        attention = attention_for(AutoConfig.from_pretrained(folder))
        model, loaded = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation=attention, output_loading_info=True
        )
    except Exception as error:
        raise OsdError(f"cannot load a causal LM from {folder}: {reason(error)}") from error
    if missing := sorted(loaded["missing_keys"]):
        raise OsdError(f"the weights in {folder} lack {missing[0]!r}; copy the model again")
    _check_unused(folder, model, loaded["unexpected_keys"])
    return model.to(device).eval().requires_grad_(False)


def _check_unused(folder: Path, model: Any, names: Iterable[str]) -> None:
    """Weights that the model has no place for: refused where its module is there without them, told of otherwise.

    Raises:
        OsdError: a bias, say, of a projection that `config.json` describes as one without.
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
