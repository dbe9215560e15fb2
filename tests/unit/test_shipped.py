"""The drafter that is shipped for a target serves first, where it fits."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from osd.assemble import ensure_first_version, open_store
from osd.config import Config, load_config
from osd.drafters import shipped
from osd.drafters.create import create_initial
from osd.drafters.portable import write_drafter
from osd.models.resolve import ResolvedTarget, resolve_target
from osd.store_paths import slug
from osd.types import WeightManifest
from tests.saved_models import save_llama

_GATE = {"candidate": 0.6, "depth_1": 0.6, "depth_2": 0.5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "shelf"
    path.mkdir()
    monkeypatch.setattr(shipped.find_shipped, "__defaults__", (path,))
    return path


def _config(folder: Path, tmp_path: Path, **drafter: object) -> Config:
    values = {"vocab_tokens": 64, **drafter}
    return load_config(None, {"state_dir": tmp_path / "state", "target": {"model": str(folder)}, "drafter": values})


def _ship(shelf: Path, config: Config, resolved: ResolvedTarget) -> dict[str, torch.Tensor]:
    """Another seed's weights, so that they are not a new drafter's."""
    other = config.drafter.model_copy(update={"seed": 5})
    shapes, state = create_initial(config.model_copy(update={"drafter": other}), resolved.folder)
    manifest = WeightManifest(
        number=9, kind="feature", config=shapes, config_hash="", parent=None, digest="", gate=_GATE, training_step=50
    )
    write_drafter(shelf / f"{slug(resolved.target_id)}.feature.safetensors", resolved.target_id, manifest, state, {})
    return state


def _first(config: Config, resolved: ResolvedTarget) -> tuple[WeightManifest, dict[str, torch.Tensor]]:
    store = open_store(config, resolved)
    ensure_first_version(config, resolved, store)
    return store.load(1)


def test_it_is_version_one(folder: Path, tmp_path: Path, shelf: Path) -> None:
    config = _config(folder, tmp_path)
    resolved = resolve_target(str(folder), config.state_dir)
    state = _ship(shelf, config, resolved)
    manifest, published = _first(config, resolved)
    assert manifest.note == "shipped with osd" and manifest.gate == _GATE
    for name, tensor in published.items():
        expected = state[name].bfloat16().float() if state[name].is_floating_point() else state[name]
        assert torch.equal(tensor, expected) and tensor.dtype == state[name].dtype, name


def test_it_is_left_out_on_request(folder: Path, tmp_path: Path, shelf: Path) -> None:
    config = _config(folder, tmp_path, pretrained=False)
    resolved = resolve_target(str(folder), config.state_dir)
    _ship(shelf, config, resolved)
    assert _first(config, resolved)[0].note == "untrained"


@pytest.mark.parametrize("shape", [{"vocab_tokens": 32}, {"window_tokens": 16}])
def test_another_shape_starts_untrained(
    folder: Path, tmp_path: Path, shelf: Path, shape: dict[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    config = _config(folder, tmp_path)
    resolved = resolve_target(str(folder), config.state_dir)
    _ship(shelf, config, resolved)
    with caplog.at_level(logging.INFO):
        manifest, _ = _first(_config(folder, tmp_path, **shape), resolved)
    assert manifest.note == "untrained" and next(iter(shape)) in caplog.text


def test_a_torn_file_is_said_and_left_alone(
    folder: Path, tmp_path: Path, shelf: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = _config(folder, tmp_path)
    resolved = resolve_target(str(folder), config.state_dir)
    _ship(shelf, config, resolved)
    [path] = shelf.iterdir()
    path.write_bytes(path.read_bytes()[:-50])
    assert _first(config, resolved)[0].note == "untrained"
    assert str(path) in caplog.text


def test_a_target_without_one_starts_untrained(folder: Path, tmp_path: Path, shelf: Path) -> None:
    config = _config(folder, tmp_path)
    assert _first(config, resolve_target(str(folder), config.state_dir))[0].note == "untrained"
