"""Loading a causal LM from a folder, with the type and device that serve it best."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from osd.models.resolve import check_model_folder
from osd.reason import reason
from osd.types import OsdError

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


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """'auto' takes bfloat16 where the device has instructions for it, else float32. What 'int4' leaves is bfloat16.

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
    return torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32


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
