"""A folder that a URL names, over fsspec: an object store, or the memory of this process."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
from fsspec.core import url_to_fs
from fsspec.utils import get_protocol

from osd.config.settings import Config
from osd.io.folder import Folder, LocalFolder
from osd.records.errors import OsdError, reason

_writers = threading.Lock()
"""Held while a folder of any URL is written to: writers in one process take turns."""
_LOCAL = {"file", "local"}
_OURS = (FileNotFoundError, FileExistsError, PermissionError)


def open_folder(config: Config, path: str) -> Folder:
    """The folder `path` (relative, with slashes) in the store, which is the state folder where none is configured.

    Raises:
        OsdError: the protocol of `store.url` is unknown, its package is missing, or it does not take `store.options`.
    """
    url, options = config.store.url or str(config.state_dir), config.store.options
    protocol, shown = get_protocol(url), _without_password(url)
    if protocol in _LOCAL:
        return LocalFolder(Path(url.removeprefix("file://").removeprefix("local://")).expanduser() / path)
    try:
        # Other machines write too, so a listing that was kept would hide what is new.
        file_system, root = url_to_fs(url, **{"use_listings_cache": False, **options})
    except ImportError as error:
        extra = "install osd[s3]" if protocol in ("s3", "s3a") else "install the package that it names"
        raise OsdError(f"store.url is {shown!r}, and its package is missing: {reason(error)}; {extra}") from None
    except Exception as error:  # each file system refuses options in its own way
        if protocol not in fsspec.available_protocols():
            raise OsdError(
                f"store.url is {shown!r}: the protocol {protocol!r} is unknown to fsspec; "
                "give a folder or a URL such as s3://bucket/osd"
            ) from None
        raise OsdError(f"store.url {shown!r} cannot be opened with store.options: {reason(error)}") from None
    return UrlFolder(file_system, f"{root.rstrip('/')}/{path}", str(protocol))


class UrlFolder:
    """A `Folder` on a file system of fsspec whose writes are whole objects.

    An object store replaces an object at once, so nothing is renamed. There is no lock over several objects: who
    creates a file with `create` first has it.

    Args:
        file_system: fsspec's.
        root: the folder in it.
        protocol: for messages.
    """

    excludes_writers = False

    def __init__(self, file_system: fsspec.AbstractFileSystem, root: str, protocol: str) -> None:
        self._files, self._root, self._protocol = file_system, root, protocol

    def __str__(self) -> str:
        return f"{self._protocol}://{self._root.lstrip('/')}"

    def names(self) -> list[str]:
        """See `Folder`."""
        with _only_os_errors():
            try:
                paths = self._files.ls(self._root, detail=False)
            except FileNotFoundError:
                return []
        return [path.rstrip("/").rsplit("/", 1)[-1] for path in paths]

    def read(self, name: str) -> bytes:
        """See `Folder`."""
        with _only_os_errors():
            return bytes(self._files.cat_file(self._path(name)))

    def write(self, name: str, data: bytes, *, create: bool = False) -> None:
        """See `Folder`. Whether `create` is one step with the write is the store's: it is on S3 and on GCS."""
        path = self._path(name)
        with _only_os_errors():
            try:
                self._files.pipe_file(path, data, mode="create" if create else "overwrite")
            except Exception:
                if create and self._files.exists(path):  # stores say it in different ways
                    raise FileExistsError(f"{self._protocol}://{path} exists") from None
                raise

    def remove(self, name: str) -> None:
        """See `Folder`."""
        with _only_os_errors():
            try:
                self._files.rm_file(self._path(name))
            except FileNotFoundError:
                return

    @contextmanager
    def writing(self) -> Iterator[None]:
        """See `Folder`."""
        with _writers:
            yield

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"


def _without_password(url: str) -> str:
    """A URL for messages: `sftp://user:…@host/path`."""
    return re.sub(r"(//[^/@:]*):[^/@]*@", r"\1:…@", url)


@contextmanager
def _only_os_errors() -> Iterator[None]:
    """Turn what a store's own library raises (botocore's errors, say, are no OSError) into an OSError."""
    try:
        yield
    except _OURS:
        raise
    except Exception as error:
        raise OSError(reason(error)) from error
