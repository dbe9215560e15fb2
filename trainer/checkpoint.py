"""The trainer's checkpoint: one safetensors file, replaced atomically, and files with the outcomes of its replay.

The checkpoint holds tensors (the student's, the optimizer's, token counts) and JSON metadata for the rest; no pickle.
An outcome is written once, by the first save after it arrived, to a file that the JSON lists. Outcomes may therefore be
acknowledged as soon as a save is done, and a restarted trainer has the same replay as the one that was killed.

Order of a save: write new outcomes, fsync; write the checkpoint under a temporary name, fsync, rename; remove files of
outcomes that are no longer listed. A crash at any point leaves the previous checkpoint intact.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from osd.io.codec import OutcomeFormatError, decode, encode
from osd.records.outcome import Outcome

_log = logging.getLogger(__name__)
_FORMAT = "osd-trainer-1"
_NAME = "checkpoint.safetensors"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything that a trainer needs to continue."""

    tensors: dict[str, Tensor]
    """The student's state and the token counts, by name."""
    optimizer: Mapping[Any, Any]
    """`state_dict()` of the optimizer."""
    progress: dict[str, Any]
    """Everything else, JSON-serialisable."""
    records: list[tuple[int, Outcome]]
    """(sequence number, outcome) for the records of the replay."""


class CheckpointFolder:
    """Saves and loads the newest checkpoint in its own folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._listed: dict[str, list[int]] = {}
        """File of outcomes to the sequence numbers in it."""

    def save(
        self,
        *,
        tensors: Mapping[str, Tensor],
        optimizer: Mapping[Any, Any],
        progress: Mapping[str, Any],
        new_records: Sequence[tuple[int, Outcome]],
        oldest: int,
    ) -> None:
        """Replace the checkpoint.

        Args:
            tensors: see `Checkpoint`.
            optimizer: see `Checkpoint`.
            progress: see `Checkpoint`.
            new_records: records of the replay that no checkpoint contains yet.
            oldest: sequence number of the oldest record in the replay.

        Raises:
            OSError: it cannot be written; the previous checkpoint is intact.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        listed = {name: numbers for name, numbers in self._listed.items() if numbers[-1] >= oldest}
        if new_records:
            numbers = [number for number, _ in new_records]
            name = f"outcomes-{numbers[0]:012d}.msgpack"
            content = msgspec.msgpack.encode([encode(outcome) for _, outcome in new_records])
            _replace_with(self._folder / name, lambda path: path.write_bytes(content))
            listed[name] = numbers
        flat = {f"tensors/{name}": tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        body = {"progress": progress, "outcomes": listed, "oldest": oldest, "optimizer": _flatten(optimizer, flat)}
        text = json.dumps(body)
        metadata = {"format": _FORMAT, "body": text, "digest": _digest(flat, text)}
        try:
            _replace_with(self._folder / _NAME, lambda path: save_file(flat, path, metadata=metadata))
        except SafetensorError as error:  # safetensors' way to report a full disk
            raise OSError(str(error)) from error
        self._listed = listed
        for path in self._folder.glob("outcomes-*"):
            if path.name not in listed:
                path.unlink(missing_ok=True)

    def load(self) -> Checkpoint | None:
        """The newest checkpoint; None if there is none, or (with a warning that says why) if it is damaged."""
        path = self._folder / _NAME
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                flat = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
            if metadata.get("format") != _FORMAT:
                raise ValueError(f"its format is {metadata.get('format')!r}, not {_FORMAT!r}")
            if metadata["digest"] != _digest(flat, metadata["body"]):
                raise ValueError("its content does not match its digest")
            body = json.loads(metadata["body"])
            records = self._load_records(body["outcomes"], body["oldest"])
            optimizer = _unflatten(body["optimizer"], flat)
        except (SafetensorError, OutcomeFormatError, msgspec.DecodeError, OSError, ValueError, KeyError) as error:
            _log.warning("checkpoint %s is ignored, training starts from the published weights: %s", path, error)
            return None
        self._listed = body["outcomes"]
        tensors = {name.removeprefix("tensors/"): flat[name] for name in flat if name.startswith("tensors/")}
        return Checkpoint(tensors, optimizer, body["progress"], records)

    def _load_records(self, listed: Mapping[str, list[int]], oldest: int) -> list[tuple[int, Outcome]]:
        records: list[tuple[int, Outcome]] = []
        for name, numbers in listed.items():
            packed = msgspec.msgpack.decode((self._folder / name).read_bytes(), type=list[bytes])
            records += [(number, decode(data)) for number, data in zip(numbers, packed, strict=True)]
        return sorted((record for record in records if record[0] >= oldest), key=lambda record: record[0])


def _replace_with(path: Path, write: Any) -> None:
    """Write a temporary file, fsync it, rename it to `path`, and fsync the folder."""
    scratch = path.with_name(f".{path.name}.tmp")
    try:
        write(scratch)
        _sync(scratch)
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _flatten(value: Any, tensors: dict[str, Tensor]) -> Any:
    """A nested state as JSON; each tensor is moved to `tensors` and replaced by its name there."""
    if isinstance(value, Tensor):
        name = f"optimizer/{len(tensors)}"
        tensors[name] = value.detach().cpu().clone().contiguous()
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"map": [[key, _flatten(one, tensors)] for key, one in value.items()]}
    if isinstance(value, list | tuple):
        return {"list": [_flatten(one, tensors) for one in value]}
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    raise TypeError(f"an optimizer state of type {type(value).__name__} cannot be saved without pickle")


def _unflatten(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "map" in value:
        return {key: _unflatten(one, tensors) for key, one in value["map"]}
    if "list" in value:
        return [_unflatten(one, tensors) for one in value["list"]]
    return value["value"]
