"""A drafter in one file, to carry elsewhere: bfloat16 weights, with kind, shapes, target and origin in the header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from osd.types import OsdError, WeightManifest, WeightsRefusedError


@dataclass(frozen=True, slots=True)
class PortableDrafter:
    """What such a file holds."""

    kind: str
    config: dict[str, Any]
    target_id: str
    card: dict[str, Any]
    """Where it comes from: data, command, figures."""
    state: dict[str, Tensor]
    """Floating point as float32, as trainers and stores have it."""


def write_drafter(
    path: Path, target_id: str, manifest: WeightManifest, state: Mapping[str, Tensor], card: Mapping[str, Any]
) -> None:
    """Write a version to a file of its own."""
    header = {
        "kind": manifest.kind,
        "config": json.dumps(manifest.config),
        "target_id": target_id,
        "card": json.dumps({**card, "gate": manifest.gate, "training_step": manifest.training_step}),
    }
    small = {
        name: (tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in state.items()
    }
    save_file(small, path, metadata=header)


def read_drafter(path: Path) -> PortableDrafter:
    """Read it back.

    Raises:
        WeightsRefusedError: it is torn, or was not written by `write_drafter`.
    """
    try:
        header, state = _read(path)
        return PortableDrafter(
            header["kind"], json.loads(header["config"]), header["target_id"], json.loads(header["card"]), state
        )
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise WeightsRefusedError(f"{path} is no whole drafter file: {error}") from None


def read_weights(path: Path, kind: str) -> dict[str, Tensor]:
    """The weights in any safetensors file, whether or not `write_drafter` wrote it.

    Raises:
        OsdError: it cannot be read.
        WeightsRefusedError: it says that it is of another kind of drafter.
    """
    try:
        header, state = _read(path)
    except (OSError, SafetensorError) as error:
        raise OsdError(f"cannot read {path}: {error}; give a whole safetensors file") from None
    if header.get("kind", kind) != kind:
        raise WeightsRefusedError(f"{path} holds a {header['kind']!r} drafter, serving is a {kind!r} one")
    return state


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    with safe_open(path, framework="pt") as file:
        header = file.metadata() or {}
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
    return header, {name: one.float() if one.is_floating_point() else one for name, one in state.items()}
