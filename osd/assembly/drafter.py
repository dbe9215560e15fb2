"""Opens the store of a drafter's versions, and a drafter with one of them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import torch

from osd.config.settings import Config
from osd.drafters.create import create_initial, open_drafter
from osd.drafters.eagle3.layout import TargetShape
from osd.drafters.eagle3.reading import read_head
from osd.drafters.shipped import find_shipped
from osd.io.domains.listed import open_domains
from osd.io.domains.store import open_versions
from osd.io.weight_store import FileWeightStore
from osd.kernels.backend import Backend
from osd.kernels.reference.drafting.eagle3_net import Eagle3Config
from osd.loading.resolve import ResolvedTarget
from osd.loading.shared_rows import load_shared_rows
from osd.models.target import Target
from osd.ports.drafter import Drafter, Swappable
from osd.ports.weight_store import WeightStore
from osd.records.drafter_id import drafter_name
from osd.records.errors import OsdError, WeightsRefusedError
from osd.records.version import UNTRAINED, WeightManifest

_log = logging.getLogger(__name__)


def open_store(config: Config, resolved: ResolvedTarget, name: str = "") -> FileWeightStore:
    """The store of a drafter's versions for a target.

    Args:
        config: the whole configuration.
        resolved: the target.
        name: the drafter's; empty: the base drafter's, which is the configured kind.
    """
    return open_versions(config, resolved.target_id, name or config.drafter.kind)


def ensure_first_version(config: Config, resolved: ResolvedTarget, store: WeightStore) -> None:
    """If the store is empty, publish the drafter shipped for this target, or an untrained one if none is shipped."""
    if store.latest() is not None:
        return
    kind = config.drafter.kind
    shapes, state = create_initial(config, resolved.folder)
    shipped = find_shipped(resolved.target_id, kind, shapes, state) if config.drafter.pretrained else None
    if shipped is None:
        store.publish(state, kind=kind, config=shapes, parent=None, note=UNTRAINED)
    else:
        note, gate = f"shipped; {shipped.origin}", shipped.card.get("gate", {})
        store.publish(shipped.state, kind=kind, config=shapes, parent=None, gate=gate, note=note)


def import_head(config: Config, resolved: ResolvedTarget, store: WeightStore, path: Path) -> WeightManifest:
    """Publish an EAGLE-3 head as version 1 of the target's `eagle3` drafter.

    Raises:
        OsdError: there is a version already, the head cannot be read, or osd cannot serve it with this target.
    """
    from transformers import AutoConfig

    if latest := store.latest():
        raise OsdError(
            f"there is an eagle3 drafter already (version {latest.number}); use another --state-dir for another head"
        )
    folder, trusts = resolved.folder, config.target.trust_remote_code
    target = AutoConfig.from_pretrained(folder, trust_remote_code=trusts).get_text_config()
    shape = TargetShape(target.hidden_size, target.vocab_size, target.num_hidden_layers)
    shared = load_shared_rows(folder, torch.float32, trust_remote_code=trusts)
    head = read_head(path, shape, shared.embedding_VH)
    note = f"imported from {path.resolve().name}"
    return store.publish(head.state, kind=head.config.kind, config=head.config.as_dict(), parent=None, note=note)


def hidden_layers_for(config: Config, resolved: ResolvedTarget, store: WeightStore) -> list[int]:
    """The layers whose inputs the target must store for the drafter; empty: the last hidden states.

    The first version is made where there is none.

    Raises:
        OsdError: no drafter can be created.
    """
    if config.drafter.kind != "eagle3":
        return []
    ensure_first_version(config, resolved, store)
    first = store.to_start_with()
    assert first is not None
    _log.info(
        "the eagle3 drafter %d is computed by torch's operations; compiled kernels have the feature drafter only",
        first.number,
    )
    return list(Eagle3Config(**first.config).target_layers)


def open_latest(config: Config, resolved: ResolvedTarget, store: WeightStore, target: Target) -> Drafter:
    """The drafter with the version to start with, or the newest older one that can be served.

    The first version is made where there is none.

    Raises:
        OsdError: no drafter can be created, or every version is refused.
    """
    ensure_first_version(config, resolved, store)
    first = store.to_start_with()
    assert first is not None
    older = [one for one in reversed(store.list()) if one.number < first.number and not one.rolled_back]
    refusals = []
    for candidate in (first, *older):
        try:
            return open_version(config, resolved, store, target, candidate.number, target.backend)
        except WeightsRefusedError as error:  # an engine that restarts must come up with what it served before
            _log.warning("drafter version %d refused, looking for an older one: %s", candidate.number, error)
            refusals.append(error)
    raise refusals[0]


class DomainDrafters:
    """Makes the drafters of domains.

    Args:
        config: the whole configuration.
        resolved: the target.
        backend: computes their rounds; compiled kernels that take over replace it.
    """

    def __init__(self, config: Config, resolved: ResolvedTarget, backend: Backend) -> None:
        self._config, self._resolved, self.backend = config, resolved, backend

    def make(self, name: str, manifest: WeightManifest, target: Target) -> Drafter:
        """A drafter with this name and of this version's shape; its weights are loaded afterwards.

        Raises:
            OsdError: the version's configuration does not fit the target.
        """
        return open_drafter(self._config, manifest.config, target, self._resolved.folder, self.backend, name)

    def stored(self, target: Target) -> Iterator[tuple[Drafter, WeightManifest]]:
        """The drafters of the domains that got one last, as many as the configuration allows, ready to serve.

        One whose version is refused is left out, and logged.
        """
        most, kind = self._config.drafter.max_domains, self._config.drafter.kind
        for domain in open_domains(self._config, self._resolved.target_id).read()[-most:] if most else ():
            name = drafter_name(kind, domain)
            store = open_store(self._config, self._resolved, name)
            first = store.to_start_with()
            if first is None or not first.number:
                continue
            try:
                drafter = open_version(self._config, self._resolved, store, target, first.number, self.backend, name)
            except WeightsRefusedError as error:
                _log.warning(
                    "the base drafter serves domain %r: version %d is refused: %s", domain, first.number, error
                )
                continue
            yield drafter, first


def open_version(
    config: Config,
    resolved: ResolvedTarget,
    store: WeightStore,
    target: Target,
    number: int,
    backend: Backend,
    name: str = "",
) -> Drafter:
    """The drafter with one of its store's versions, on a back end.

    Args:
        config: the whole configuration.
        resolved: the target.
        store: the drafter's versions.
        target: the loaded target.
        number: of the version.
        backend: computes the drafter's rounds.
        name: the drafter's; empty: the base drafter's.

    Raises:
        WeightsRefusedError: the version is damaged, or its tensors do not fit.
        OsdError: the version's configuration does not fit the target.
    """
    manifest, state = store.load(number)
    drafter = open_drafter(config, manifest.config, target, resolved.folder, backend, name)
    assert isinstance(drafter, Swappable)
    drafter.prepare(state, manifest.number)()
    return drafter
