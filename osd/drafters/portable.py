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

from osd.records.errors import OsdError, WeightsRefusedError
from osd.records.version import WeightManifest

_WHERE_MADE = {"_name_or_path", "transformers_version"}
"""Of a `model` drafter's configuration: where and by what it was written, not what it is."""


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

    @property
    def origin(self) -> str:
        """Where it comes from in a few words, for a manifest's note."""
        answers = str(self.card.get("answers", ""))
        return f"distilled on {int(answers):,} answers" if answers.isdecimal() else "distilled elsewhere"

    def difference(self, target_id: str, kind: str, config: Mapping[str, Any]) -> str:
        """How it is not the drafter that is asked for; empty where it is."""
        if self.kind != kind:
            return f"it is a {self.kind!r} drafter, not a {kind!r} one"
        if self.target_id != target_id:
            return f"it was made for target {self.target_id!r}, not {target_id!r}"
        asked = json.loads(json.dumps(dict(config)))  # as the header's went through JSON
        names = sorted((self.config.keys() | asked.keys()) - _WHERE_MADE)
        differing = [name for name in names if self.config.get(name) != asked.get(name)]
        return ", ".join(f"its {name} is {self.config.get(name)!r}, not {asked.get(name)!r}" for name in differing)


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
        config, card = (dict(json.loads(header[name])) for name in ("config", "card"))
        return PortableDrafter(header["kind"], config, header["target_id"], card, state)
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise WeightsRefusedError(f"{path} is no whole drafter file: {error}") from None


def read_weights(path: Path, target_id: str, kind: str, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights in a file of `write_drafter`, or in a plain safetensors file, which does not say what it fits.

    Raises:
        OsdError: it cannot be read.
        WeightsRefusedError: it says that it is for another target, or of another kind or configuration.
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
