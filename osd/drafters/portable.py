"""A drafter in one file, to copy elsewhere: bfloat16 weights; kind, configuration, target, origin in the header."""

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

from osd.records.errors import OsdError, WeightsRefusedError
from osd.records.version import WeightManifest

_WHERE_MADE = {"_name_or_path", "transformers_version"}
"""Keys in a `model` drafter's configuration that tell how the file was written, not what the model is."""


@dataclass(frozen=True, slots=True)
class PortableDrafter:
    """The content of such a file."""

    kind: str
    config: dict[str, Any]
    target_id: str
    card: dict[str, Any]
    """The origin: data, command, measurements."""
    state: dict[str, Tensor]
    """The tensors; floating-point ones as float32, as trainers and weight stores have them."""

    @property
    def origin(self) -> str:
        """The origin in a few words, for a manifest's note."""
        answers = str(self.card.get("answers", ""))
        return f"distilled on {int(answers):,} answers" if answers.isdecimal() else "distilled elsewhere"

    def difference(self, target_id: str, kind: str, config: Mapping[str, Any]) -> str:
        """How this drafter differs from the requested one; empty if it does not."""
        if self.kind != kind:
            return f"it is a {self.kind!r} drafter, not a {kind!r} one"
        if self.target_id != target_id:
            return f"it was made for target {self.target_id!r}, not {target_id!r}"
        asked = json.loads(json.dumps(dict(config)))  # as the header's: JSON turns tuples into lists, for instance
        names = sorted((self.config.keys() | asked.keys()) - _WHERE_MADE)
        differing = [name for name in names if self.config.get(name) != asked.get(name)]
        return ", ".join(f"its {name} is {self.config.get(name)!r}, not {asked.get(name)!r}" for name in differing)


def write_drafter(
    path: Path, target_id: str, manifest: WeightManifest, state: Mapping[str, Tensor], card: Mapping[str, Any]
) -> None:
    """Write a drafter version to a single file."""
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
    """Read a file that `write_drafter` wrote.

    Raises:
        WeightsRefusedError: the file is damaged, or of another origin.
    """
    try:
        header, state = _read(path)
        config, card = (dict(json.loads(header[name])) for name in ("config", "card"))
        return PortableDrafter(header["kind"], config, header["target_id"], card, state)
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise WeightsRefusedError(f"{path} is no whole drafter file: {error}") from None


def read_weights(path: Path, target_id: str, kind: str, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights in a file of `write_drafter`, or in a plain safetensors file, which does not name what it fits.

    Raises:
        OsdError: the file cannot be read.
        WeightsRefusedError: the file is for another target, or of another kind or configuration.
    """
    try:
        header, state = _read(path)
    except (OSError, SafetensorError) as error:
        raise OsdError(f"cannot read {path}: {error}; give a whole safetensors file") from None
    if "target_id" in header and (difference := read_drafter(path).difference(target_id, kind, config)):
        raise WeightsRefusedError(f"{path} does not fit: {difference}")
    return state


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    with safe_open(path, framework="pt") as file:
        header = file.metadata() or {}
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
    return header, {name: one.float() if one.is_floating_point() else one for name, one in state.items()}
