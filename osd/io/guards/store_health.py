"""Sees that the place of drafter versions is one that several processes can use."""

from __future__ import annotations

from osd.config.settings import Config
from osd.io.folder import LocalFolder
from osd.io.url_folder import open_folder
from osd.records.errors import OsdError, reason


def refuse_private_store(config: Config) -> None:
    """See that engine and distiller, two processes, can share the store of `store.url`.

    Raises:
        OsdError: they cannot.
    """
    if config.store.url.startswith("memory:"):
        raise OsdError(
            f"store.url is {config.store.url!r}, which every process has for itself; give a folder, or a URL such as "
            "s3://bucket/osd, that engine and distiller share"
        )


def check_store(config: Config) -> None:
    """See that the store of `store.url` can be opened here and read, and a folder written to as versions need it.

    Raises:
        OsdError: it cannot, or engine and distiller, two processes, could not share it.
    """
    if not config.store.url:
        return
    folder = open_folder(config, "weights")
    if isinstance(folder, LocalFolder):
        folder.check()
        return
    refuse_private_store(config)
    try:
        folder.names()
    except OSError as error:
        raise OsdError(
            f"cannot read the store {folder}: {reason(error)}; see that store.url can be reached with store.options"
        ) from None
