"""Drafter versions on disk: `v000003.safetensors`, its manifest `v000003.json`, and the pointer file `latest`.

A version exists once its manifest does, and is served once the pointer names it. Tensors, manifest and pointer are
written in that order, each to a temporary name, synced and renamed. A writer holds the lock file, so any unfinished
file that it finds belongs to a writer that died.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes

from osd.records.errors import OsdError, UnknownVersionError, WeightsRefusedError
from osd.records.version import WeightManifest

logger = logging.getLogger(__name__)

_MANIFEST_NAME = re.compile(r"v(\d+)\.json")
_TEMPORARY = ".tmp"


def config_hash(kind: str, config: Mapping[str, Any]) -> str:
    """sha256 (hex) of a drafter's kind and configuration as canonical JSON.

    Two drafters with the same hash can load each other's weights.
    """
    return hashlib.sha256(_canonical_json({"kind": kind, "config": dict(config)}).encode()).hexdigest()


class _Pointer(msgspec.Struct):
    latest: int
    newest: int
    """The highest number ever used, so that no number is reused after its files were removed."""


class FileWeightStore:
    """Implements `osd.ports.WeightStore`; any number of processes may use one folder."""

    def __init__(self, root: Path, *, keep: int = 20) -> None:
        """Use a folder; the first publish creates it.

        Args:
            root: The folder.
            keep: How many of the newest versions are kept; the latest and its parent always are.
        """
        if keep < 1:
            raise ValueError("keep must be at least 1")
        self._root = root
        self._keep = keep

    def publish(
        self,
        state: Mapping[str, torch.Tensor],
        *,
        kind: str,
        config: Mapping[str, Any],
        parent: int | None,
        training_step: int = 0,
        stream_position: str = "",
        gate: Mapping[str, float] | None = None,
        note: str = "",
    ) -> WeightManifest:
        """Write a new version (number = highest ever given + 1) and point `latest` at it.

        Raises:
            WeightsRefusedError: a tensor holds NaN or infinity; nothing was written.
            OsdError: the disk cannot be written; the previous version stays the latest.
        """
        _refuse_non_finite(state, "the new version")
        # clone: safetensors refuses tensors that share memory, such as tied weights.
        data = tensors_to_bytes(
            {name: tensor.detach().to("cpu").clone().contiguous() for name, tensor in state.items()}
        )
        with self._writing():
            number = max([0, *self._numbers(), *(pointer.newest for pointer in [self._pointer()] if pointer)]) + 1
            manifest = WeightManifest(
                number=number,
                kind=kind,
                config=json.loads(_canonical_json(dict(config))),
                config_hash=config_hash(kind, config),
                parent=parent,
                digest=hashlib.sha256(data).hexdigest(),
                training_step=training_step,
                stream_position=stream_position,
                gate={name: float(figure) for name, figure in (gate or {}).items()},
                created_at_s=time.time(),
                note=note,
            )
            self._write(self._tensors_path(number), data)
            self._write_manifest(manifest)
            self._write_pointer(_Pointer(latest=number, newest=number))
            self._prune(manifest)
        return manifest

    def latest(self) -> WeightManifest | None:
        """The version to serve; None if nothing was published.

        If the pointer or its manifest cannot be read, or a roll back was interrupted, it is the newest version that
        was not rolled back.
        """
        pointer = self._pointer()
        if pointer:
            try:
                manifest = self._manifest(pointer.latest)
            except WeightsRefusedError as error:
                logger.warning("%s", error)
            else:
                if not manifest.rolled_back:
                    return manifest
        return next((manifest for manifest in reversed(self.list()) if not manifest.rolled_back), None)

    def load(self, number: int) -> tuple[WeightManifest, dict[str, torch.Tensor]]:
        """Read and check one version; its tensors are on the CPU.

        Raises:
            WeightsRefusedError: it is missing or incomplete, holds NaN or infinity, or does not match its manifest.
        """
        manifest, path = self._manifest(number), self._tensors_path(number)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise WeightsRefusedError(f"cannot read weights {path}: {error.strerror}") from None
        if hashlib.sha256(data).hexdigest() != manifest.digest:
            raise WeightsRefusedError(f"weights {path} are torn or altered: they do not match their manifest's digest")
        try:
            state = tensors_from_bytes(data)
        except SafetensorError as error:
            raise WeightsRefusedError(f"weights {path} are no safetensors file: {error}") from None
        _refuse_non_finite(state, f"version {number}")
        return manifest, state

    def list(self) -> list[WeightManifest]:
        """All versions with a readable manifest, oldest first; tensors are only checked by `load`."""
        manifests = []
        for number in self._numbers():
            try:
                manifests.append(self._manifest(number))
            except WeightsRefusedError as error:
                logger.warning("%s", error)
        return manifests

    def roll_back(self, *, to: int | None = None, reason: str) -> WeightManifest:
        """Mark the latest version as rolled back, and point `latest` at the newest intact version before it.

        Args:
            to: go back to this version instead; all newer ones are marked.
            reason: stored with the marks.

        Returns:
            The manifest of the version that is now the latest.

        Raises:
            WeightsRefusedError: there is no version to go back to; nothing was changed.
            OsdError: the disk cannot be written.
        """
        with self._writing():
            current = self.latest()
            if current is None:
                raise WeightsRefusedError("nothing was published yet, so there is no version to roll back")
            target = self._predecessor(current) if to is None else self._sound(to, current)
            # Versions newer than `to` are marked too, so that the next roll back does not go to one of them.
            passed = [current] if to is None else [one for one in self.list() if one.number > to]
            # Marked before the pointer moves: after a crash in between, `latest()` skips the marked version.
            for manifest in passed:
                if not manifest.rolled_back:
                    self._write_manifest(replace(manifest, rolled_back=reason or "no reason given"))
            pointer = self._pointer()
            newest = max([*self._numbers(), pointer.newest if pointer else 0])
            self._write_pointer(_Pointer(latest=target.number, newest=newest))
        return target

    def _predecessor(self, current: WeightManifest) -> WeightManifest:
        for number in reversed(tuple(number for number in self._numbers() if number < current.number)):
            try:
                return self._sound(number, current)
            except WeightsRefusedError as error:
                logger.warning("cannot roll back to version %d: %s", number, error)
        raise WeightsRefusedError(f"version {current.number} has no sound predecessor to roll back to")

    def _sound(self, number: int, current: WeightManifest) -> WeightManifest:
        manifest, _ = self.load(number)
        if number == current.number:
            raise WeightsRefusedError(f"version {number} is the latest already")
        if manifest.rolled_back:
            raise WeightsRefusedError(f"version {number} was itself rolled back: {manifest.rolled_back}")
        return manifest

    def _manifest(self, number: int) -> WeightManifest:
        path = self._manifest_path(number)
        try:
            manifest = msgspec.convert(json.loads(path.read_bytes()), WeightManifest)
        except FileNotFoundError:
            raise UnknownVersionError(f"there is no drafter version {number}") from None
        except OSError as error:
            raise WeightsRefusedError(f"cannot read version {number}'s manifest {path}: {error.strerror}") from None
        except ValueError as error:  # of JSON, Unicode and msgspec's validation
            raise WeightsRefusedError(f"manifest {path} is torn or foreign: {error}") from None
        if manifest.number != number:
            raise WeightsRefusedError(f"manifest {path} is foreign: it says version {manifest.number}")
        if manifest.config_hash != config_hash(manifest.kind, manifest.config):
            raise WeightsRefusedError(f"manifest {path} was altered: its configuration does not match its hash")
        return manifest

    def _pointer(self) -> _Pointer | None:
        try:
            return msgspec.json.decode(self._pointer_path.read_bytes(), type=_Pointer)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as error:
            logger.warning("cannot read %s: %s", self._pointer_path, error)
            return None

    def _numbers(self) -> tuple[int, ...]:
        """Numbers of the versions that have a manifest, ascending."""
        paths = self._root.iterdir() if self._root.is_dir() else ()
        return tuple(sorted(int(match[1]) for path in paths if (match := _MANIFEST_NAME.fullmatch(path.name))))

    @property
    def _pointer_path(self) -> Path:
        return self._root / "latest"

    def _manifest_path(self, number: int) -> Path:
        return self._root / f"v{number:06d}.json"

    def _tensors_path(self, number: int) -> Path:
        return self._root / f"v{number:06d}.safetensors"

    def _write_manifest(self, manifest: WeightManifest) -> None:
        self._write(self._manifest_path(manifest.number), json.dumps(asdict(manifest), indent=2).encode())

    def _write_pointer(self, pointer: _Pointer) -> None:
        self._write(self._pointer_path, msgspec.json.encode(pointer))

    def _write(self, path: Path, data: bytes) -> None:
        """Replace a file atomically: a reader sees the old or the new content, even after a power failure."""
        temporary = path.with_name(path.name + _TEMPORARY)
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)  # it may be what filled the disk
            raise
        folder = os.open(self._root, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Hold the folder's lock, and remove what a writer that died left unfinished."""
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            with (self._root / "lock").open("wb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                self._clean()
                yield
        except OSError as error:
            raise OsdError(
                f"cannot write weights to {self._root}: {error.strerror}; free space or fix access"
            ) from None

    def _clean(self) -> None:
        for path in self._root.glob(f"*{_TEMPORARY}"):
            path.unlink()
        for path in self._root.glob("v*.safetensors"):
            if not path.with_suffix(".json").exists():
                path.unlink()

    def _prune(self, latest: WeightManifest) -> None:
        for number in self._numbers()[: -self._keep]:
            if number != latest.number and number != latest.parent:
                self._manifest_path(number).unlink()  # first: without it the version does not exist
                self._tensors_path(number).unlink(missing_ok=True)


def _canonical_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def _refuse_non_finite(state: Mapping[str, torch.Tensor], what: str) -> None:
    for name, tensor in state.items():
        if not torch.isfinite(tensor).all():
            raise WeightsRefusedError(f"{what} is refused: tensor {name!r} holds NaN or infinity")
