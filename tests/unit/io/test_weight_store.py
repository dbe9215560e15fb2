"""Weight versions are published whole, refused when unsound, and numbered once."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from osd.io.weight_store import FileWeightStore, config_hash
from osd.records.errors import OsdError, UnknownVersionError, WeightsRefusedError
from osd.records.version import WeightManifest

_CONFIG = {"hidden_size": 8, "layers": (1, 2)}


def _state(value: float = 1.0) -> dict[str, torch.Tensor]:
    return {"weight": torch.full((2, 3), value), "ids": torch.tensor([4, 5])}


def _publish(store: FileWeightStore, value: float = 1.0, **details: Any) -> WeightManifest:
    latest = store.latest()
    details = {"kind": "feature", "config": _CONFIG, "parent": latest.number if latest else None, **details}
    return store.publish(_state(value), **details)


def _edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "weights"


@pytest.fixture
def store(root: Path) -> FileWeightStore:
    return FileWeightStore(root)


def test_an_empty_store_has_no_latest_and_makes_no_folder(store: FileWeightStore, root: Path) -> None:
    assert store.latest() is None
    assert store.list() == []
    assert not root.exists()


def test_a_version_comes_back_as_it_was_published(store: FileWeightStore, root: Path) -> None:
    published = _publish(store, 2.5, training_step=7, stream_position="5-0", gate={"candidate": 0.5}, note="first")
    assert published.number == 1
    assert FileWeightStore(root).latest() == published
    manifest, state = FileWeightStore(root).load(1)
    assert manifest == published
    assert manifest.config == {"hidden_size": 8, "layers": [1, 2]}
    assert manifest.gate == {"candidate": 0.5}
    assert state.keys() == _state().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in _state(2.5).items())


def test_bfloat16_tied_and_strided_tensors_can_be_published(store: FileWeightStore) -> None:
    tied = torch.randn(4, 6).bfloat16()
    store.publish({"a": tied, "b": tied, "c": tied.T}, kind="model", config={}, parent=None)
    _, state = store.load(1)
    assert torch.equal(state["a"], tied)
    assert torch.equal(state["b"], tied)
    assert torch.equal(state["c"], tied.T)


def test_config_hash_depends_on_kind_and_values_only() -> None:
    assert config_hash("feature", {"a": 1, "b": (2,)}) == config_hash("feature", {"b": [2], "a": 1})
    assert config_hash("feature", {"a": 1}) != config_hash("model", {"a": 1})
    assert config_hash("feature", {"a": 1}) != config_hash("feature", {"a": 2})


def test_a_missing_version_is_refused(store: FileWeightStore) -> None:
    _publish(store)
    with pytest.raises(WeightsRefusedError, match="version 9"):
        store.load(9)


def _truncate(root: Path) -> None:
    path = root / "v000001.safetensors"
    os.truncate(path, path.stat().st_size - 1)


def _alter_tensors(root: Path) -> None:
    save_file({"weight": torch.zeros(3, 3)}, root / "v000001.safetensors")


def _remove_tensors(root: Path) -> None:
    (root / "v000001.safetensors").unlink()


def _tear_manifest(root: Path) -> None:
    os.truncate(root / "v000001.json", 20)


def _replace_manifest(root: Path) -> None:
    (root / "v000001.json").write_text('{"some": "other program"}')


def _renumber(root: Path) -> None:
    _edit(root / "v000001.json", number=4)


def _alter_config(root: Path) -> None:
    _edit(root / "v000001.json", config={"hidden_size": 16})


def _not_safetensors(root: Path) -> None:
    (root / "v000001.safetensors").write_bytes(b"pickle")
    _edit(root / "v000001.json", digest=sha256(b"pickle").hexdigest())


def _non_finite(root: Path) -> None:
    path = root / "v000001.safetensors"
    save_file({"weight": torch.tensor([1.0, float("nan")])}, path)
    _edit(root / "v000001.json", digest=sha256(path.read_bytes()).hexdigest())


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_truncate, "torn or altered"),
        (_alter_tensors, "torn or altered"),
        (_remove_tensors, "cannot read weights"),
        (_tear_manifest, "manifest .* torn or foreign"),
        (_replace_manifest, "manifest .* torn or foreign"),
        (_renumber, "foreign: it says version 4"),
        (_alter_config, "configuration does not match"),
        (_not_safetensors, "no safetensors"),
        (_non_finite, "'weight' holds NaN"),
    ],
)
def test_an_unsound_version_is_refused_with_the_reason(
    store: FileWeightStore, root: Path, damage: Callable[[Path], None], reason: str
) -> None:
    _publish(store)
    damage(root)
    with pytest.raises(WeightsRefusedError, match=reason):
        store.load(1)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_non_finite_version_is_never_published(store: FileWeightStore, value: float) -> None:
    first = _publish(store)
    with pytest.raises(WeightsRefusedError, match="'weight' holds NaN or infinity"):
        _publish(store, value)
    assert store.latest() == first


@pytest.mark.parametrize("step", range(6))
def test_a_publish_that_dies_at_any_step_leaves_the_former_version(
    store: FileWeightStore, root: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Steps: tensors, manifest and pointer, each dying before and after its rename."""
    first = _publish(store)
    real_replace, calls = Path.replace, 0

    def dying_replace(self: Path, target: Path) -> Path:
        nonlocal calls
        calls += 1
        if calls == step // 2 + 1:
            if step % 2:
                real_replace(self, target)
            raise KeyboardInterrupt  # as good as death: nothing is cleaned up
        return real_replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", dying_replace)
        with pytest.raises(KeyboardInterrupt):
            _publish(store, 2.0)
    latest = FileWeightStore(root).latest()
    assert latest is not None
    assert latest.number == (2 if step == 5 else first.number)
    store.load(latest.number)
    again = _publish(FileWeightStore(root), 3.0)
    assert again.number == len(store.list())
    assert torch.equal(store.load(again.number)[1]["weight"], _state(3.0)["weight"])
    assert not list(root.glob("*.tmp"))
    assert len(list(root.glob("*.safetensors"))) == len(store.list())


def test_a_full_disk_is_explained_and_leaves_nothing_behind(
    store: FileWeightStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _publish(store)

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OsdError, match="No space left on device; free space"):
            _publish(store)
    assert store.latest() == first
    assert not list(root.glob("*.tmp"))
    assert _publish(store).number == 2


def test_the_newest_sound_version_stands_in_for_a_torn_pointer(store: FileWeightStore, root: Path) -> None:
    _publish(store)
    second = _publish(store)
    (root / "latest").write_text("")
    assert store.latest() == second
    assert _publish(store).number == 3


def test_roll_back_returns_to_the_newest_sound_predecessor(store: FileWeightStore, root: Path) -> None:
    first = _publish(store)
    _publish(store, 2.0)
    _publish(store, 3.0)
    os.truncate(root / "v000002.safetensors", 5)
    assert store.roll_back(reason="acceptance fell") == first
    assert store.latest() == first
    assert [manifest.rolled_back for manifest in store.list()] == ["", "", "acceptance fell"]


def test_roll_back_to_a_chosen_version(store: FileWeightStore) -> None:
    first = _publish(store)
    _publish(store)
    _publish(store)
    assert store.roll_back(to=1, reason="operator") == first
    assert store.latest() == first
    assert [manifest.rolled_back for manifest in store.list()] == ["", "operator", "operator"]
    _publish(store)
    assert store.roll_back(reason="worse") == first, "not the version that the operator rejected"


def test_roll_back_twice_skips_what_was_rolled_back(store: FileWeightStore) -> None:
    first = _publish(store)
    second = _publish(store)
    _publish(store)
    assert store.roll_back(reason="x") == second
    _publish(store)
    assert store.roll_back(reason="y") == second
    assert store.roll_back(reason="z") == first


@pytest.mark.parametrize(
    ("to", "reason"),
    [
        (2, "the latest already"),
        (3, "itself rolled back: bad"),
        (7, "version 7"),
        (None, "no sound predecessor"),
    ],
)
def test_roll_back_to_an_unfit_version_changes_nothing(
    store: FileWeightStore, root: Path, to: int | None, reason: str
) -> None:
    for _ in range(3):
        _publish(store)
    second = store.roll_back(reason="bad")
    os.truncate(root / "v000001.safetensors", 5)
    with pytest.raises(WeightsRefusedError, match=reason) as caught:
        store.roll_back(to=to, reason="y")
    assert isinstance(caught.value, UnknownVersionError) == (to == 7)
    assert store.latest() == second


def test_nothing_published_cannot_be_rolled_back(store: FileWeightStore) -> None:
    with pytest.raises(WeightsRefusedError, match="nothing was published"):
        store.roll_back(reason="x")


def test_a_roll_back_that_dies_before_the_pointer_moves_still_counts(
    store: FileWeightStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _publish(store)
    _publish(store)

    def dying_write(pointer: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store, "_write_pointer", dying_write)
        with pytest.raises(KeyboardInterrupt):
            store.roll_back(reason="x")
    assert store.latest() == first


def test_numbers_are_given_once_after_roll_back_and_removal(store: FileWeightStore, root: Path) -> None:
    for _ in range(3):
        _publish(store)
    store.roll_back(reason="x")
    for suffix in ("json", "safetensors"):
        (root / f"v000003.{suffix}").unlink()
    assert _publish(store).number == 4


def test_the_newest_versions_the_latest_its_parent_and_the_newest_not_trained_online_are_kept(root: Path) -> None:
    store = FileWeightStore(root, keep=2)
    for value in range(5):
        _publish(store, value)
    assert [manifest.number for manifest in store.list()] == [1, 4, 5]
    _publish(store, parent=4)
    _publish(store, parent=4)  # 4 is older than the newest two, and their parent; 1 has none
    assert [manifest.number for manifest in store.list()] == [1, 4, 6, 7]
    assert len(list(root.glob("*.safetensors"))) == 4


def _publish_some(root: Path, count: int) -> list[int]:
    store = FileWeightStore(root, keep=100)
    return [_publish(store, float(index)).number for index in range(count)]


def test_writers_in_threads_get_distinct_numbers(root: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        numbers = [number for part in pool.map(lambda _: _publish_some(root, 5), range(4)) for number in part]
    assert sorted(numbers) == list(range(1, 21))
    _assert_all_sound(root, 20)


def test_writers_in_processes_get_distinct_numbers(root: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        numbers = [number for part in pool.starmap(_publish_some, [(root, 5)] * 2) for number in part]
    assert sorted(numbers) == list(range(1, 11))
    _assert_all_sound(root, 10)


def _assert_all_sound(root: Path, count: int) -> None:
    store = FileWeightStore(root)
    latest = store.latest()
    assert latest is not None
    assert latest.number == count
    for number in range(1, count + 1):
        store.load(number)
