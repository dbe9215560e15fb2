"""Reads only the target's embedding and head, which a `feature` drafter shares, without loading the layers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from osd.loading.causal_lm import load_causal_lm
from osd.loading.resolve import check_model_folder
from osd.records.shared_rows import SharedRows

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"


def load_shared_rows(folder: Path, dtype: torch.dtype, *, trust_remote_code: bool = False) -> SharedRows:
    """The target's embedding and head. Loads the whole model only if its files use other tensor names.

    Args:
        folder: written by `save_pretrained`, in one file or sharded.
        dtype: of the result.
        trust_remote_code: run Python code that the folder holds, where the model needs it.

    Raises:
        OsdError: the folder is incomplete.
    """
    check_model_folder(folder)
    names = _names(folder, trust_remote_code)
    files = _files(folder)
    if names is None or any(name is not None and name not in files for name in names):
        return _from_whole_model(folder, dtype, trust_remote_code)
    embedding, head, bias = (None if name is None else _read(files[name], name, dtype) for name in names)
    assert embedding is not None
    return SharedRows(embedding, embedding if head is None else head, bias)


def _names(folder: Path, trust_remote_code: bool) -> tuple[str, str | None, str | None] | None:
    """Tensor names of the embedding, the head (None if tied) and the head's bias, from a model on the meta device."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        model: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    # A tied parameter has several names; the first is the embedding's, which files use.
    names: dict[int, str] = {}
    for name, tensor in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(tensor), name)
    if head is None or id(embedding.weight) not in names or id(head.weight) not in names:
        return None
    tied = head.weight is embedding.weight or model.config.get_text_config().tie_word_embeddings
    bias = getattr(head, "bias", None)
    return (
        names[id(embedding.weight)],
        None if tied else names[id(head.weight)],
        None if bias is None else names[id(bias)],
    )


def _files(folder: Path) -> dict[str, Path]:
    """Tensor name to the file that holds it."""
    index = folder / _INDEX
    if index.is_file():
        weight_map: dict[str, str] = json.loads(index.read_text())["weight_map"]
        return {name: folder / file for name, file in weight_map.items()}
    path = folder / _WEIGHTS
    if not path.is_file():
        return {}
    with safe_open(path, framework="pt") as file:
        return dict.fromkeys(file.keys(), path)


def _read(path: Path, name: str, dtype: torch.dtype) -> Tensor:
    with safe_open(path, framework="pt") as file:
        tensor: Tensor = file.get_tensor(name)
    return tensor.to(dtype)


def _from_whole_model(folder: Path, dtype: torch.dtype, trust_remote_code: bool) -> SharedRows:
    model = load_causal_lm(folder, dtype=dtype, device=torch.device("cpu"), trust_remote_code=trust_remote_code)
    head = model.get_output_embeddings()
    bias = getattr(head, "bias", None)
    return SharedRows(
        model.get_input_embeddings().weight.detach(), head.weight.detach(), None if bias is None else bias.detach()
    )
