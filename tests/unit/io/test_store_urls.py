"""The weight store and the checkpoint behave alike on a disk, in memory and on a local double of S3."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from osd.config.settings import Config
from osd.io.folder import Folder
from osd.io.url_folder import open_folder
from osd.io.weight_store import FileWeightStore
from osd.records.errors import OsdError, WeightsRefusedError
from osd.records.version import WeightManifest
from tests.kit.stores import PROTOCOLS, config_of_store, s3_server, url_of
from tests.kit.trainer_fakes import make_outcome
from trainer.loop.checkpoint import CheckpointFolder

_WEIGHTS, _CHECKPOINT = "weights/tiny/feature", "checkpoints/tiny/feature"


@pytest.fixture(scope="module")
def s3_options() -> Iterator[dict[str, Any]]:
    with s3_server() as options:
        yield options


@pytest.fixture(params=PROTOCOLS)
def config(request: pytest.FixtureRequest, tmp_path: Path) -> Config:
    protocol: str = request.param
    options = request.getfixturevalue("s3_options") if protocol == "s3" else {}
    return config_of_store(url_of(protocol, tmp_path), options, tmp_path)


@pytest.fixture
def folder(config: Config) -> Folder:
    return open_folder(config, _WEIGHTS)


def _publish(folder: Folder, value: float = 1.0, **details: Any) -> WeightManifest:
    state = {"weight": torch.full((2, 3), value)}
    return FileWeightStore(folder).publish(state, **{"kind": "feature", "config": {"a": 1}, "parent": None, **details})


def test_versions_appear_to_others_as_they_were_published(config: Config, folder: Folder) -> None:
    others = FileWeightStore(open_folder(config, _WEIGHTS))
    assert others.latest() is None and others.list() == []
    first = _publish(folder, 2.5, training_step=7)
    assert others.latest() == first
    second = _publish(folder, 3.5)
    assert others.list() == [first, second]
    manifest, state = others.load(2)
    assert manifest == second
    assert torch.equal(state["weight"], torch.full((2, 3), 3.5))


def test_a_roll_back_marks_and_moves_the_pointer(config: Config, folder: Folder) -> None:
    first = _publish(folder)
    _publish(folder)
    assert FileWeightStore(folder).roll_back(reason="acceptance fell") == first
    others = FileWeightStore(open_folder(config, _WEIGHTS))
    assert others.latest() == first
    assert [manifest.rolled_back for manifest in others.list()] == ["", "acceptance fell"]
    assert _publish(folder).number == 3


@pytest.mark.parametrize(
    ("name", "reason"),
    [("v000002.safetensors", "torn or altered"), ("v000002.json", "manifest .* torn or foreign")],
)
def test_a_torn_file_is_refused_and_the_version_before_it_can_be_had(folder: Folder, name: str, reason: str) -> None:
    first = _publish(folder)
    _publish(folder)
    folder.write(name, folder.read(name)[:-9])
    store = FileWeightStore(folder)
    with pytest.raises(WeightsRefusedError, match=reason):
        store.load(2)
    assert store.load(1)[0] == first


def test_the_newest_version_stands_in_for_a_torn_pointer(folder: Folder) -> None:
    _publish(folder)
    second = _publish(folder)
    folder.write("latest", b'{"lat')
    assert FileWeightStore(folder).latest() == second
    assert _publish(folder).number == 3


@dataclass
class _DyingFolder:
    """Passes on to a folder, and dies at one of its writes, before or after it."""

    folder: Folder
    dies_at: int
    writes_it: bool
    num_writes: int = 0

    def write(self, name: str, data: bytes, *, create: bool = False) -> None:
        self.num_writes += 1
        if self.num_writes < self.dies_at or self.writes_it:
            self.folder.write(name, data, create=create)
        if self.num_writes == self.dies_at:
            raise KeyboardInterrupt  # as good as death: nothing is cleaned up

    def __getattr__(self, name: str) -> Any:
        return getattr(self.folder, name)


@pytest.mark.parametrize("writes_it", [False, True])
@pytest.mark.parametrize("dies_at", [1, 2, 3])
def test_a_publish_that_dies_at_any_write_leaves_a_whole_store(folder: Folder, dies_at: int, writes_it: bool) -> None:
    """The writes: tensors, manifest, pointer."""
    _publish(folder)
    with pytest.raises(KeyboardInterrupt):
        _publish(_DyingFolder(folder, dies_at, writes_it), 2.0)
    store = FileWeightStore(folder)
    latest = store.latest()
    assert latest is not None
    assert latest.number == (2 if (dies_at, writes_it) == (3, True) else 1)
    for manifest in store.list():
        store.load(manifest.number)
    again = _publish(folder, 3.0)
    assert store.latest() == again
    assert torch.equal(store.load(again.number)[1]["weight"], torch.full((2, 3), 3.0))


def test_what_a_dead_writer_left_goes_with_the_versions_of_its_time(folder: Folder) -> None:
    folder.write("v000001.safetensors", b"of a writer that died")
    store = FileWeightStore(folder, keep=2)
    for _ in range(4):
        store.publish({"a": torch.ones(1)}, kind="feature", config={}, parent=None)
    assert "v000001.safetensors" not in folder.names()
    assert len(store.list()) == 2


def test_a_number_is_given_to_one_writer_only(folder: Folder) -> None:
    with folder.writing():
        folder.write("v000001.safetensors", b"the first", create=True)
        with pytest.raises(FileExistsError):
            folder.write("v000001.safetensors", b"the second", create=True)
    assert folder.read("v000001.safetensors") == b"the first"


def test_writers_in_threads_get_distinct_numbers(config: Config) -> None:
    with ThreadPoolExecutor(4) as pool:
        made = pool.map(lambda value: _publish(open_folder(config, _WEIGHTS), float(value)), range(8))
        numbers = sorted(manifest.number for manifest in made)
    assert numbers == list(range(1, 9))
    _assert_all_sound(config, 8)


def _publish_some(config: Config, count: int) -> list[int]:
    return [_publish(open_folder(config, _WEIGHTS), float(index)).number for index in range(count)]


@pytest.mark.slow
def test_writers_in_processes_share_an_object_store(s3_options: dict[str, Any], tmp_path: Path) -> None:
    config = config_of_store(url_of("s3", tmp_path), s3_options, tmp_path)
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        numbers = [number for part in pool.starmap(_publish_some, [(config, 4)] * 2) for number in part]
    assert sorted(numbers) == list(range(1, 9))
    _assert_all_sound(config, 8)


def _assert_all_sound(config: Config, count: int) -> None:
    store = FileWeightStore(open_folder(config, _WEIGHTS))
    assert [manifest.number for manifest in store.list()] == list(range(1, count + 1))
    for number in range(1, count + 1):
        store.load(number)


def test_a_checkpoint_is_found_again_from_another_machine(config: Config) -> None:
    here, there = (CheckpointFolder(open_folder(config, _CHECKPOINT)) for _ in range(2))
    assert there.load() is None
    kept: dict[str, Any] = {"tensors": {"student/a": torch.arange(4.0)}, "optimizer": {}}
    here.save(**kept, progress={"steps": 7}, new_records=[(0, make_outcome("q-0"))], oldest=0)
    here.save(**kept, progress={"steps": 8}, new_records=[(1, make_outcome("q-1"))], oldest=1)
    loaded = there.load()
    assert loaded is not None
    assert torch.equal(loaded.tensors["student/a"], torch.arange(4.0))
    assert loaded.progress == {"steps": 8}
    assert [number for number, _ in loaded.records] == [1]
    folder = open_folder(config, _CHECKPOINT)
    assert sorted(name for name in folder.names() if name != "lock") == [
        "checkpoint.safetensors",
        "outcomes-000000000001-000000000001.msgpack",
    ]
    folder.write("checkpoint.safetensors", folder.read("checkpoint.safetensors")[:-4])
    assert there.load() is None


def test_a_store_that_is_away_is_not_taken_for_an_empty_or_torn_one(s3_options: dict[str, Any], tmp_path: Path) -> None:
    """Else an engine would refuse sound versions for good, and a trainer would begin again."""
    away = {**s3_options, "endpoint_url": "http://127.0.0.1:9", "config_kwargs": {"retries": {"max_attempts": 1}}}
    config = config_of_store("s3://osd-test/away", away, tmp_path)
    store = FileWeightStore(open_folder(config, _WEIGHTS))
    for ask in (store.latest, store.list, lambda: store.load(1)):
        with pytest.raises(OsdError, match=f"cannot read weights in s3://osd-test/away/{_WEIGHTS} now") as told:
            ask()
        assert "http://127.0.0.1:9" in str(told.value)
        assert not isinstance(told.value, WeightsRefusedError)
    with pytest.raises(OsdError, match="cannot read the checkpoint s3://osd-test/away"):
        CheckpointFolder(open_folder(config, _CHECKPOINT)).load()


def test_without_a_url_it_is_the_state_folder(tmp_path: Path) -> None:
    folder = open_folder(config_of_store("", {}, tmp_path), _WEIGHTS)
    assert str(folder) == f"{tmp_path}/state/{_WEIGHTS}"


@pytest.mark.parametrize(
    ("url", "options", "reason"),
    [
        ("floppy://a", {}, "protocol 'floppy' is unknown to fsspec; give a folder or a URL such as s3://"),
        ("floppy://me:secret@a/b", {}, "'floppy://me:…@a/b': the protocol 'floppy'"),
        ("gs://bucket/osd", {}, "its package is missing: Please install gcsfs"),
        (
            "s3://bucket/osd",
            {"key": "a", "username": "b"},
            "cannot be opened with store.options: .*either key or username",
        ),
    ],
)
def test_a_store_that_cannot_be_opened_is_explained(
    url: str, options: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    if url.startswith("s3"):
        pytest.importorskip("s3fs", reason="osd[s3] is not installed")
    with pytest.raises(OsdError, match=reason):
        open_folder(config_of_store(url, options, tmp_path), _WEIGHTS)
