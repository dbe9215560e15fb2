"""The versions of a domain's own drafter."""

from __future__ import annotations

from osd.config.paths import weights_path
from osd.config.settings import Config
from osd.io.url_folder import open_folder
from osd.io.weight_store import FileWeightStore
from osd.records.drafter_id import domain_of
from osd.records.errors import WeightsRefusedError
from osd.records.version import WeightManifest

_BASE = WeightManifest(number=0, kind="", config={}, config_hash="", parent=None, digest="", note="the base drafter")


class DomainStore(FileWeightStore):
    """The versions of a domain's drafter. Version 0, which has no files, stands for the base drafter.

    So the first version can be rolled back, and 0 can be confirmed and pinned; `latest` is None while the base drafter
    serves the domain.
    """

    def latest(self) -> WeightManifest | None:
        """See `FileWeightStore`."""
        found = super().latest()
        return found if found is not None and found.number else None

    def _predecessor(self, current: WeightManifest) -> WeightManifest:
        try:
            return super()._predecessor(current)
        except WeightsRefusedError:
            return _BASE

    def _sound(self, number: int, current: WeightManifest) -> WeightManifest:
        return super()._sound(number, current) if number else _BASE

    def _intact(self, number: int) -> tuple[WeightManifest, bytes]:
        return super()._intact(number) if number else (_BASE, b"")

    def _manifest(self, number: int) -> WeightManifest:
        return super()._manifest(number) if number else _BASE


def open_versions(config: Config, target_id: str, name: str) -> FileWeightStore:
    """The store of a drafter's versions, by the drafter's name."""
    folder = open_folder(config, weights_path(target_id, name))
    return DomainStore(folder) if domain_of(name) else FileWeightStore(folder)
