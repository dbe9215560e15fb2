"""Drafter versions on disk: `v000003.safetensors`, its manifest `v000003.json`, and the pointer file `latest`.

Tensors, manifest and pointer are written in that order, each file as a whole (`osd.io.folder`). A version exists once
its manifest does, which holds the digest of its tensors, and is served once the pointer names it. So a writer may die,
and a reader may look, at any time. On a disk, one writer at a time holds a lock. An object store has no locks: the
writer that is first to create the tensors' file has the number, and any other takes the next one; of two that publish
at once, the pointer names either.

The file `confirmed` names the version that passed its trial. Only the supervisor writes it.

torch is imported only where tensors are read or written, so that a light process can read manifests and roll back.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from osd.io.folder import Folder, as_folder
from osd.records.errors import OsdError, UnknownVersionError, WeightsRefusedError
from osd.records.errors import reason as reason_of
from osd.records.version import Confirmed, WeightManifest

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

_MANIFEST, _TENSORS, _POINTER, _CONFIRMED = "json", "safetensors", "latest", "confirmed"
_FILE_NAME = re.compile(rf"v(\d+)\.({_MANIFEST}|{_TENSORS})")


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
    """Implements `osd.ports.WeightStore`; any number of processes, on any number of machines, may use one folder."""

    def __init__(self, root: Path | Folder, *, keep: int = 20) -> None:
        """Use a folder; the first publish creates it.

        Args:
            root: The folder, or its path on a local disk.
            keep: How many of the newest versions are kept; the latest, its parent, the confirmed one and the
                newest that was not trained online always are.
        """
        if keep < 1:
            raise ValueError("keep must be at least 1")
        self._folder = as_folder(root)
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
        fence: int = 0,
    ) -> WeightManifest:
        """Write a new version (number = highest ever given + 1) and point `latest` at it.

        Raises:
            WeightsRefusedError: a tensor holds NaN or infinity; nothing was written.
            OsdError: the store cannot be written; the previous version stays the latest.
        """
        _refuse_non_finite(state, "the new version")
        from safetensors.torch import save as tensors_to_bytes

        # clone: safetensors refuses tensors that share memory, such as tied weights.
        data = tensors_to_bytes(
            {name: tensor.detach().to("cpu").clone().contiguous() for name, tensor in state.items()}
        )
        with self._writing():
            number = self._write_tensors(data)
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
                fence=fence,
            )
            self._write_manifest(manifest)
            self._write_pointer(_Pointer(latest=number, newest=number))
            self._prune(manifest)
        return manifest

    def latest(self) -> WeightManifest | None:
        """The version to serve; None if nothing was published.

        If the pointer or its manifest is torn or missing, or a roll back was interrupted, it is the newest version
        that was not rolled back.

        Raises:
            OsdError: the store cannot be read now.
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
            OsdError: the store cannot be read now.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load as tensors_from_bytes

        manifest, data = self._intact(number)
        try:
            state = tensors_from_bytes(data)
        except SafetensorError as error:
            path = f"{self._folder}/{_name(number, _TENSORS)}"
            raise WeightsRefusedError(f"weights {path} are no safetensors file: {error}") from None
        _refuse_non_finite(state, f"version {number}")
        return manifest, state

    def confirmed(self) -> Confirmed | None:
        """The version that passed its trial; None if that is not known, or if it was rolled back or removed since.

        Raises:
            OsdError: the store cannot be read now.
        """
        try:
            confirmed = msgspec.json.decode(self._read(_CONFIRMED), type=Confirmed)
            return None if self._manifest(confirmed.version).rolled_back else confirmed
        except (FileNotFoundError, msgspec.DecodeError, WeightsRefusedError):
            return None

    def confirm(self, version: int, *, pinned: str = "") -> None:
        """Let every engine serve a version from now on.

        Raises:
            WeightsRefusedError: there is no such version, it is torn, or it was rolled back.
            OsdError: the store cannot be read or written.
        """
        with self._writing():
            if (manifest := self._intact(version)[0]).rolled_back:
                raise WeightsRefusedError(f"version {version} was itself rolled back: {manifest.rolled_back}")
            self._folder.write(_CONFIRMED, msgspec.json.encode(Confirmed(version, pinned)))

    def to_start_with(self) -> WeightManifest | None:
        """The version that an engine starts with: the confirmed one, or the latest where none is known."""
        confirmed = self.confirmed()
        return self._manifest(confirmed.version) if confirmed else self.latest()

    def changes(self) -> tuple[int, int]:
        """A pair of numbers that differs after every publish and roll back; one small read."""
        pointer = self._pointer()
        return (pointer.latest, pointer.newest) if pointer else (0, 0)

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
            OsdError: the store cannot be read or written.
        """
        with self._writing():
            current = self._current()
            target = self._predecessor(current) if to is None else self._sound(to, current)
            # Versions newer than `to` are marked too, so that the next roll back does not go to one of them.
            passed = [current] if to is None else [one for one in self.list() if one.number > to]
            self._pass_over(passed, target, reason)
        return target

    def reject(self, number: int, *, reason: str) -> WeightManifest:
        """Mark one version as rolled back; newer ones stay as they are.

        Returns:
            The manifest of the version that is now the latest.

        Raises:
            WeightsRefusedError: it is the latest, and there is no sound one before it; nothing was changed.
            OsdError: the store cannot be read or written.
        """
        with self._writing():
            current = self._current()
            target = self._predecessor(current) if number == current.number else current
            self._pass_over([self._manifest(number)], target, reason)
        return target

    def _current(self) -> WeightManifest:
        current = self.latest()
        if current is None:
            raise WeightsRefusedError("nothing was published yet, so there is no version to roll back")
        return current

    def _pass_over(self, passed: Sequence[WeightManifest], target: WeightManifest, reason: str) -> None:
        # Marked before the pointer moves: after a crash in between, `latest()` skips the marked version.
        for manifest in passed:
            if not manifest.rolled_back:
                self._write_manifest(replace(manifest, rolled_back=reason or "no reason given"))
        pointer = self._pointer()
        newest = max([*self._numbers(), pointer.newest if pointer else 0])
        self._write_pointer(_Pointer(latest=target.number, newest=newest))

    def _predecessor(self, current: WeightManifest) -> WeightManifest:
        for number in reversed(tuple(number for number in self._numbers() if number < current.number)):
            try:
                return self._sound(number, current)
            except WeightsRefusedError as error:
                logger.warning("cannot roll back to version %d: %s", number, error)
        raise WeightsRefusedError(f"version {current.number} has no sound predecessor to roll back to")

    def _sound(self, number: int, current: WeightManifest) -> WeightManifest:
        manifest, _ = self._intact(number)
        if number == current.number:
            raise WeightsRefusedError(f"version {number} is the latest already")
        if manifest.rolled_back:
            raise WeightsRefusedError(f"version {number} was itself rolled back: {manifest.rolled_back}")
        return manifest

    def _intact(self, number: int) -> tuple[WeightManifest, bytes]:
        """A version's manifest and its tensors' file, which has the manifest's digest."""
        manifest, name = self._manifest(number), _name(number, _TENSORS)
        path = f"{self._folder}/{name}"
        try:
            data = self._read(name)
        except FileNotFoundError:
            raise WeightsRefusedError(f"cannot read weights {path}: there is no such file") from None
        if hashlib.sha256(data).hexdigest() != manifest.digest:
            raise WeightsRefusedError(f"weights {path} are torn or altered: they do not match their manifest's digest")
        return manifest, data

    def _manifest(self, number: int) -> WeightManifest:
        name = _name(number, _MANIFEST)
        path = f"{self._folder}/{name}"
        try:
            manifest = msgspec.convert(json.loads(self._read(name)), WeightManifest)
        except FileNotFoundError:
            raise UnknownVersionError(f"there is no drafter version {number}") from None
        except ValueError as error:  # of JSON, Unicode and msgspec's validation
            raise WeightsRefusedError(f"manifest {path} is torn or foreign: {error}") from None
        if manifest.number != number:
            raise WeightsRefusedError(f"manifest {path} is foreign: it says version {manifest.number}")
        if manifest.config_hash != config_hash(manifest.kind, manifest.config):
            raise WeightsRefusedError(f"manifest {path} was altered: its configuration does not match its hash")
        return manifest

    def _pointer(self) -> _Pointer | None:
        try:
            return msgspec.json.decode(self._read(_POINTER), type=_Pointer)
        except FileNotFoundError:
            return None
        except msgspec.DecodeError as error:
            logger.warning("cannot read %s/%s: %s", self._folder, _POINTER, error)
            return None

    def _numbers(self, kind: str = _MANIFEST) -> tuple[int, ...]:
        """The numbers of the versions that have a file of this kind, ascending."""
        try:
            names = self._folder.names()
        except OSError as error:
            raise self._unreadable(error) from None
        matches = (_FILE_NAME.fullmatch(name) for name in names)
        return tuple(sorted(int(match[1]) for match in matches if match and match[2] == kind))

    def _read(self, name: str) -> bytes:
        try:
            return self._folder.read(name)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise self._unreadable(error) from None

    def _unreadable(self, error: OSError) -> OsdError:
        return OsdError(
            f"cannot read weights in {self._folder} now: {_why(error)}; see that it can be reached and read"
        )

    def _write_tensors(self, data: bytes) -> int:
        """Write a new version's tensors, and so take its number: one above the highest ever given."""
        pointer = self._pointer()
        number = max([0, *self._numbers(), *self._numbers(_TENSORS), pointer.newest if pointer else 0]) + 1
        while True:
            try:
                self._folder.write(_name(number, _TENSORS), data, create=True)
            except FileExistsError:  # another writer was faster
                number += 1
            else:
                return number

    def _write_manifest(self, manifest: WeightManifest) -> None:
        self._folder.write(_name(manifest.number, _MANIFEST), json.dumps(asdict(manifest), indent=2).encode())

    def _write_pointer(self, pointer: _Pointer) -> None:
        self._folder.write(_POINTER, msgspec.json.encode(pointer))

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Write to the folder, and remove what a writer that died left unfinished."""
        try:
            with self._folder.writing():
                self._remove_orphans()
                yield
        except OSError as error:
            raise OsdError(f"cannot write weights to {self._folder}: {_why(error)}; free space or fix access") from None

    def _remove_orphans(self) -> None:
        """Remove tensors without a manifest.

        Where writers do not exclude one another, only old ones: a writer may be between its tensors and its manifest.
        """
        versions = self._numbers()
        newest_to_go = max(versions, default=0) - self._keep
        for number in set(self._numbers(_TENSORS)) - set(versions):
            if self._folder.excludes_writers or number <= newest_to_go:
                self._folder.remove(_name(number, _TENSORS))

    def _prune(self, latest: WeightManifest) -> None:
        confirmed = self.confirmed()
        origin = max((one.number for one in self.list() if one.is_origin), default=None)
        kept = {latest.number, latest.parent, confirmed.version if confirmed else None, origin}
        for number in self._numbers()[: -self._keep]:
            if number not in kept:
                self._folder.remove(_name(number, _MANIFEST))  # first: without it the version does not exist
                self._folder.remove(_name(number, _TENSORS))


def _name(number: int, kind: str) -> str:
    return f"v{number:06d}.{kind}"


def _why(error: OSError) -> str:
    return error.strerror or reason_of(error)


def _canonical_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def _refuse_non_finite(state: Mapping[str, torch.Tensor], what: str) -> None:
    import torch

    for name, tensor in state.items():
        if not torch.isfinite(tensor).all():
            raise WeightsRefusedError(f"{what} is refused: tensor {name!r} holds NaN or infinity")
