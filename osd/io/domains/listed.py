"""The list of the domains that have a drafter of their own."""

from __future__ import annotations

import msgspec

from osd.config.paths import weights_path
from osd.config.settings import Config
from osd.io.folder import Folder
from osd.io.url_folder import open_folder
from osd.records.errors import OsdError, reason

MAX_DOMAINS = 64
"""Clients choose the labels; further domains are served by the base drafter."""
_LIST = "domains"


class DomainList:
    """The domains that have a drafter of their own, kept in a file beside the base drafter's versions.

    Args:
        folder: of the base drafter's versions.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder

    def read(self) -> tuple[str, ...]:
        """The domains, in the order in which they were added.

        Raises:
            OsdError: the list cannot be read now.
        """
        try:
            return msgspec.json.decode(self._folder.read(_LIST), type=tuple[str, ...])
        except FileNotFoundError:
            return ()
        except (OSError, msgspec.DecodeError) as error:
            raise OsdError(f"cannot read the list of domains in {self._folder}: {reason(error)}") from None

    def add(self, domain: str) -> None:
        """Add a domain.

        Raises:
            OsdError: the list cannot be read or written, or is full.
        """
        known = self.read()
        if domain in known:
            return
        if len(known) >= MAX_DOMAINS:
            raise OsdError(f"{MAX_DOMAINS} domains have a drafter of their own; no more are kept")
        try:
            with self._folder.writing():
                self._folder.write(_LIST, msgspec.json.encode((*known, domain)))
        except OSError as error:
            raise OsdError(f"cannot write the list of domains in {self._folder}: {reason(error)}") from None


def open_domains(config: Config, target_id: str) -> DomainList:
    """The list of the domains that have a drafter of their own for a target."""
    return DomainList(open_folder(config, weights_path(target_id, config.drafter.kind)))
