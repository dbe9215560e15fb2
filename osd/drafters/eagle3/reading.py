"""Reads a published EAGLE-3 head as a drafter version, or says in one line why it cannot be one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from osd.drafters.eagle3.layout import TargetShape, parse_config
from osd.drafters.weights import check_state
from osd.kernels.reference.drafting.eagle3_net import Eagle3Config
from osd.records.errors import OsdError, WeightsRefusedError, reason

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
_IGNORED = ("rotary_emb.inv_freq", "verifier_lm_head.weight", "verifier_norm.weight")
"""Ends of names of tensors that some files have and nothing needs: they follow from the configuration or the target."""


class Head(NamedTuple):
    """A head as a drafter version."""

    config: Eagle3Config
    state: dict[str, Tensor]
    """Floating-point tensors as float32, as trainers and weight stores have them."""


def read_head(path: Path, target: TargetShape, embedding_VH: Tensor) -> Head:
    """Read a head.

    Args:
        path: a folder with `config.json` and weights, or its weights file.
        target: the target that it is to serve.
        embedding_VH: the target's embedding; a head's own is left out if it is the same.

    Raises:
        OsdError: it cannot be read, or osd cannot serve it with this target.
    """
    folder = path if path.is_dir() else path.parent
    try:
        raw = json.loads((folder / "config.json").read_text())
        if not isinstance(raw, dict):
            raise OsdError("config.json holds no object")
        config = parse_config(raw, target)
        return head_of(config, _read_tensors(path), embedding_VH)
    except (OSError, SafetensorError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise OsdError(f"cannot read the head in {path}: {reason(error)}") from None
    except OsdError as error:
        raise OsdError(f"{path} is refused: {error}") from None


def head_of(config: Eagle3Config, tensors: dict[str, Tensor], embedding_VH: Tensor) -> Head:
    """A head from its configuration and the tensors of its file.

    Args:
        config: see `parse_config`.
        tensors: by their names in the file.
        embedding_VH: see `read_head`.

    Raises:
        OsdError: a tensor is missing, unknown, of another shape, not finite, or names tokens that do not exist.
    """
    state = {name.replace("layers.0.", "midlayer."): tensor for name, tensor in tensors.items()}
    d2t, t2d, own = (state.pop(name, None) for name in ("d2t", "t2d", "embed_tokens.weight"))
    state["vocab_ids_R"] = _vocabulary(config, d2t, t2d)
    if own is not None and not _is_same(own, embedding_VH):
        config = replace(config, has_embedding=True)
        state["embed_tokens.weight"] = own
    if config.hidden_size != config.target_hidden_size and not config.has_embedding:
        raise OsdError(
            f"tensor 'embed_tokens.weight' is missing: the target's embedding has size {config.target_hidden_size}, "
            f"the head {config.hidden_size}"
        )
    with torch.device("meta"):
        expected = config.network().state_dict()
    try:
        check_state(state, expected)
    except WeightsRefusedError as error:
        raise OsdError(str(error)) from None
    return Head(config, {name: one.float() if one.is_floating_point() else one for name, one in state.items()})


def _vocabulary(config: Eagle3Config, d2t_R: Tensor | None, t2d_V: Tensor | None) -> Tensor:
    """The target's id of each token in the head's vocabulary, int64 `[R]`, from their offsets `d2t`."""
    num, most = config.vocab_tokens, config.target_vocab_tokens
    if d2t_R is None:
        if num != most:
            raise OsdError(f"tensor 'd2t' is missing, and draft_vocab_size {num} is not the vocabulary's {most}")
        return torch.arange(num)
    if tuple(d2t_R.shape) != (num,):
        raise OsdError(f"tensor 'd2t' has shape {tuple(d2t_R.shape)}, draft_vocab_size is {num}")
    ids_R = torch.arange(num) + d2t_R.long()
    if num and not 0 <= int(ids_R.min()) <= int(ids_R.max()) < most:
        raise OsdError(f"tensor 'd2t' names tokens {int(ids_R.min())} to {int(ids_R.max())} of {most}")
    if len(set(ids_R.tolist())) < num:
        raise OsdError("tensor 'd2t' names a token twice")
    if t2d_V is not None:
        named = torch.zeros(most, dtype=torch.bool)
        named[ids_R] = True
        if tuple(t2d_V.shape) != (most,) or not torch.equal(t2d_V.bool(), named):
            raise OsdError("tensors 't2d' and 'd2t' name different tokens")
    return ids_R


def _is_same(own_VH: Tensor, target_VH: Tensor) -> bool:
    """Whether two embeddings are the same but for the type that they are stored in."""
    return own_VH.shape == target_VH.shape and torch.equal(own_VH.to(target_VH.dtype), target_VH)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    found = path if path.is_file() else next((path / name for name in _WEIGHTS if (path / name).is_file()), None)
    if found is None:
        raise OsdError(f"it has no weights ({_WEIGHTS[0]})")
    if found.suffix == ".bin":
        tensors = _read_pickled(found)
    else:
        files = _shards(found) if found.suffix == ".json" else [found]
        tensors = {}
        for file in files:
            with safe_open(file, framework="pt") as opened:
                tensors |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a dictionary
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(_IGNORED)}


def _shards(index: Path) -> list[Path]:
    weight_map: Mapping[str, Any] = json.loads(index.read_text())["weight_map"]
    return sorted({index.parent / str(name) for name in weight_map.values()})


def _read_pickled(path: Path) -> dict[str, Tensor]:
    """Tensors of a `torch.save` file, which is not allowed to run code."""
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # torch reports unreadable and unsafe files by several types, and advises to trust them
        raise OsdError(f"{path.name} is damaged or holds more than tensors; convert it to safetensors") from None
    if not isinstance(loaded, dict) or not all(isinstance(one, Tensor) for one in loaded.values()):
        raise OsdError(f"{path.name} holds no tensors by name")
    return dict(loaded)
