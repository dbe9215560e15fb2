"""The trainer's checkpoint: one safetensors file, replaced as a whole, and files with the outcomes of its replay.

The checkpoint holds tensors (the student's, the optimizer's, token counts) and JSON metadata for the rest; no pickle.
An outcome is written once, by the first save after it arrived, to a file that the JSON lists. Outcomes may therefore be
acknowledged as soon as a save is done, and a restarted trainer has the same replay as the one that was killed.

Order of a save: write new outcomes; write the checkpoint, which lists them; remove files of outcomes that are no longer
listed. Each file is written as a whole (`osd.io.folder`), so a crash at any point leaves the previous one intact.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor

from osd.io.codec import OutcomeFormatError, decode, encode
from osd.io.folder import Folder, as_folder
from osd.records.errors import OsdError
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
    """Saves and loads the newest checkpoint in its own folder.

    Args:
        folder: the folder, or its path on a local disk.
    """

    def __init__(self, folder: Path | Folder) -> None:
        self._folder = as_folder(folder)
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
        is_whole: bool = False,
    ) -> None:
        """Replace the checkpoint.

        Args:
            tensors: see `Checkpoint`.
            optimizer: see `Checkpoint`.
            progress: see `Checkpoint`.
            new_records: records of the replay that no checkpoint contains yet.
            oldest: sequence number of the oldest record in the replay.
            is_whole: `new_records` are all records of the replay; records of earlier saves are dropped.

        Raises:
            OSError: it cannot be written; the previous checkpoint is intact.
        """
        before = {} if is_whole else self._listed
        listed = {name: numbers for name, numbers in before.items() if numbers[-1] >= oldest}
        with self._folder.writing():
            if new_records:
                numbers = [number for number, _ in new_records]
                name = f"outcomes-{numbers[0]:012d}-{numbers[-1]:012d}.msgpack"
                self._folder.write(name, msgspec.msgpack.encode([encode(outcome) for _, outcome in new_records]))
                listed[name] = numbers
            flat = {f"tensors/{name}": tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
            body = {"progress": progress, "outcomes": listed, "oldest": oldest, "optimizer": _flatten(optimizer, flat)}
            text = json.dumps(body)
            metadata = {"format": _FORMAT, "body": text, "digest": _digest(flat, text)}
            self._folder.write(_NAME, tensors_to_bytes(flat, metadata))
            self._listed = listed
            for name in self._folder.names():
                if name.startswith("outcomes-") and name not in listed:
                    self._folder.remove(name)

    @property
    def num_records(self) -> int:
        """Records in the checkpoint, those included that the replay has dropped since."""
        return sum(map(len, self._listed.values()))

    def load(self) -> Checkpoint | None:
        """The newest checkpoint; None if there is none, or (with a warning that says why) if it is damaged.

        Raises:
            OsdError: it cannot be read now, so nobody knows whether it is whole.
        """
        try:
            data = self._folder.read(_NAME)
            flat, metadata = tensors_from_bytes(data), _metadata(data)
            if metadata.get("format") != _FORMAT:
                raise ValueError(f"its format is {metadata.get('format')!r}, not {_FORMAT!r}")
            if metadata["digest"] != _digest(flat, metadata["body"]):
                raise ValueError("its content does not match its digest")
            body = json.loads(metadata["body"])
            records = self._load_records(body["outcomes"], body["oldest"])
            optimizer = _unflatten(body["optimizer"], flat)
        except FileNotFoundError as error:
            if _NAME in self._folder.names():
                self._ignore(error)
            return None
        except OSError as error:
            where = f"{self._folder}/{_NAME}"
            raise OsdError(f"cannot read the checkpoint {where} now: {error}; see that it can be reached") from None
        except (SafetensorError, OutcomeFormatError, msgspec.DecodeError, ValueError, KeyError) as error:
            self._ignore(error)
            return None
        self._listed = body["outcomes"]
        tensors = {name.removeprefix("tensors/"): flat[name] for name in flat if name.startswith("tensors/")}
        return Checkpoint(tensors, optimizer, body["progress"], records)

    def _ignore(self, error: Exception) -> None:
        where = f"{self._folder}/{_NAME}"
        _log.warning("checkpoint %s is ignored, training starts from the published weights: %s", where, error)

    def _load_records(self, listed: Mapping[str, list[int]], oldest: int) -> list[tuple[int, Outcome]]:
        records: list[tuple[int, Outcome]] = []
        for name, numbers in listed.items():
            packed = msgspec.msgpack.decode(self._folder.read(name), type=list[bytes])
            records += [(number, decode(data)) for number, data in zip(numbers, packed, strict=True)]
        return sorted((record for record in records if record[0] >= oldest), key=lambda record: record[0])


def _metadata(data: bytes) -> dict[str, str]:
    """Metadata of a safetensors file: eight bytes of length (little-endian), then a JSON header that holds it."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    metadata: dict[str, str] = header.get("__metadata__", {})
    return metadata


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
