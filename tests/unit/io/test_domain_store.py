"""Versions by domain: each domain's in a folder of its own, and version 0 for the base drafter."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from osd.config.paths import checkpoint_path, weights_path
from osd.config.settings import load_config
from osd.io.domains.listed import MAX_DOMAINS, DomainList, open_domains
from osd.io.domains.store import DomainStore, open_versions
from osd.io.folder import LocalFolder
from osd.io.weight_store import FileWeightStore
from osd.records.drafter_id import domain_of, drafter_name
from osd.records.errors import OsdError, UnknownVersionError, WeightsRefusedError
from osd.records.version import WeightManifest


def _publish(store: FileWeightStore) -> WeightManifest:
    return store.publish({"weight": torch.ones(2)}, kind="feature", config={}, parent=None)


def test_a_domain_has_a_folder_of_its_own_and_the_base_drafter_keeps_its(tmp_path: Path) -> None:
    config = load_config(flags={"state_dir": tmp_path})
    for name in ("feature", "feature.sql", "feature.a:b", "feature.a-b", "feature..."):
        _publish(open_versions(config, "HuggingFaceTB/SmolLM2", name))
    folders = {path.parent.name for path in tmp_path.glob("weights/HuggingFaceTB-SmolLM2/*/v000001.json")}
    assert folders == {"feature", "feature.sql", "feature.a%3Ab", "feature.a-b", "feature..."}
    assert weights_path("t", "feature.sql") == "weights/t/feature.sql"
    assert checkpoint_path("t", "feature.sql") == "checkpoints/t/feature.sql"
    assert weights_path("t", "feature.../../x").count("/") == 2, "a label leads out of the folder"


def test_names_and_domains() -> None:
    assert (drafter_name("feature"), drafter_name("feature", "a.b")) == ("feature", "feature.a.b")
    assert (domain_of("feature"), domain_of("feature.a.b")) == ("", "a.b")


def test_the_first_version_can_be_rolled_back_to_the_base_drafter(tmp_path: Path) -> None:
    store = DomainStore(tmp_path)
    assert store.latest() is None and store.confirmed() is None
    assert _publish(store).number == 1
    assert store.reject(1, reason="worse").number == 0
    assert store.latest() is None and "worse" in store.load(1)[0].rolled_back
    assert _publish(store).number == 2
    latest = store.latest()
    assert latest is not None and latest.number == 2
    assert store.roll_back(to=0, reason="by hand").number == 0
    assert store.latest() is None and store.to_start_with() is None
    with pytest.raises(WeightsRefusedError, match="nothing was published"):
        store.roll_back(to=0, reason="again")
    with pytest.raises(UnknownVersionError):
        store.roll_back(to=9, reason="mistyped") if _publish(store) else None


def test_a_later_one_is_rolled_back_to_the_one_before(tmp_path: Path) -> None:
    store = DomainStore(tmp_path)
    for _ in range(3):
        _publish(store)
    assert store.reject(3, reason="worse").number == 2
    assert store.roll_back(to=1, reason="by hand").number == 1


def test_the_base_drafter_can_be_confirmed_and_pinned(tmp_path: Path) -> None:
    store = DomainStore(tmp_path)
    _publish(store)
    store.confirm(0, pinned="one is enough")
    confirmed = DomainStore(tmp_path).confirmed()
    assert confirmed is not None and (confirmed.version, confirmed.pinned) == (0, "one is enough")
    store.confirm(1)
    confirmed = store.confirmed()
    assert confirmed is not None and confirmed.version == 1


def test_a_base_drafters_first_version_still_cannot(tmp_path: Path) -> None:
    store = FileWeightStore(tmp_path)
    _publish(store)
    with pytest.raises(WeightsRefusedError, match="no sound predecessor"):
        store.reject(1, reason="worse")
    with pytest.raises(WeightsRefusedError):
        store.confirm(0)


def test_the_list_of_domains(tmp_path: Path) -> None:
    config = load_config(flags={"state_dir": tmp_path})
    domains = open_domains(config, "tiny")
    assert domains.read() == ()
    for domain in ("sql", "a:b", "sql"):
        domains.add(domain)
    assert open_domains(config, "tiny").read() == ("sql", "a:b")
    base = open_versions(config, "tiny", "feature")
    _publish(base)
    assert [one.number for one in base.list()] == [1], "it is no version"


def test_a_full_or_torn_list_is_refused(tmp_path: Path) -> None:
    domains = DomainList(LocalFolder(tmp_path))
    for number in range(MAX_DOMAINS):
        domains.add(f"d{number}")
    with pytest.raises(OsdError, match="no more are kept"):
        domains.add("one more")
    (tmp_path / "domains").write_text("[1,")
    with pytest.raises(OsdError, match="cannot read the list of domains"):
        domains.read()
