"""A folder of files that are each replaced as a whole: the common ground of the weight store and the checkpoint."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from osd.records.errors import OsdError

_TEMPORARY = ".tmp"


class Folder(Protocol):
    """Named files in one place. Every method raises OSError where the place refuses or cannot be reached."""

    excludes_writers: bool
    """Whether `writing` keeps every other writer out, those on other machines too."""

    def names(self) -> list[str]:
        """The names of all files; empty if the folder does not exist yet."""
        ...

    def read(self, name: str) -> bytes:
        """A file's content; FileNotFoundError where there is none."""
        ...

    def write(self, name: str, data: bytes, *, create: bool = False) -> None:
        """Put a file there, or replace it, so that a reader sees the old content or the new, never part of it.

        Args:
            name: of the file.
            data: all of it.
            create: raise FileExistsError where the file exists, and leave it as it is.
        """
        ...

    def remove(self, name: str) -> None:
        """Remove a file; none there is no error."""
        ...

    def writing(self) -> AbstractContextManager[None]:
        """Hold the folder while several files are written; the folder is made if need be."""
        ...


class LocalFolder:
    """A `Folder` on a disk of this machine or on a mounted one.

    A file is written to a temporary name, synced and renamed, and the folder is synced: after a power cut too there is
    the old file or the new one. `writing` holds an exclusive lock (flock) on the file `lock`.

    Args:
        path: the folder; made by the first write.
    """

    excludes_writers = True

    def __init__(self, path: Path) -> None:
        self._path = path

    def __str__(self) -> str:
        return str(self._path)

    def names(self) -> list[str]:
        """See `Folder`."""
        try:
            return [path.name for path in self._path.iterdir()]
        except FileNotFoundError:
            return []

    def read(self, name: str) -> bytes:
        """See `Folder`."""
        return (self._path / name).read_bytes()

    def write(self, name: str, data: bytes, *, create: bool = False) -> None:
        """See `Folder`. With `create`, call it inside `writing`: look and rename are two steps."""
        self._path.mkdir(parents=True, exist_ok=True)
        path = self._path / name
        if create and path.exists():
            raise FileExistsError(f"{path} exists")
        temporary = path.with_name(name + _TEMPORARY)
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)  # it may be what fills the disk
            raise
        descriptor = os.open(self._path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def remove(self, name: str) -> None:
        """See `Folder`."""
        (self._path / name).unlink(missing_ok=True)

    def check(self) -> None:
        """See that a file can be locked here and renamed over another, as some network file systems cannot.

        Raises:
            OsdError: it cannot; the message says what to use instead.
        """
        name, step = ".osd-check", "lock a file"
        try:
            with self.writing():
                step = "rename a file over another"
                for content in (b"1", b"2"):
                    self.write(name, content)
                if self.read(name) != b"2":
                    raise OSError("the old content is still there")
                self.remove(name)
        except OSError as error:
            raise OsdError(
                f"cannot {step} in {self._path}: {error.strerror or error}; drafter versions need a file system that "
                "can (a local disk, NFS version 4), or an object store: store.url = 's3://bucket/osd'"
            ) from None

    @contextmanager
    def writing(self) -> Iterator[None]:
        """See `Folder`. Temporary files found here are of writers that died."""
        self._path.mkdir(parents=True, exist_ok=True)
        with (self._path / "lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for path in self._path.glob(f"*{_TEMPORARY}"):
                path.unlink()
            yield


def as_folder(place: Path | Folder) -> Folder:
    """A path as the folder it names; a `Folder` as it is."""
    return LocalFolder(place) if isinstance(place, Path) else place
