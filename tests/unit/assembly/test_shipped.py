"""The drafter that is shipped for a target serves first, where it fits."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from osd.assembly.drafter import ensure_first_version, open_store
from osd.assembly.engine import open_engine
from osd.config.paths import slug
from osd.config.settings import Config, load_config
from osd.drafters import shipped
from osd.drafters.create import create_initial
from osd.drafters.portable import write_drafter
from osd.loading.resolve import ResolvedTarget, resolve_target
from osd.records.query import SamplingParams
from osd.records.version import WeightManifest
from tests.kit.saved_models import save_llama

_GATE = {"candidate": 0.6, "depth_1": 0.6, "depth_2": 0.5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "shelf"
    path.mkdir()
    monkeypatch.setattr(shipped, "SHIPPED_WEIGHTS", path)
    return path


@pytest.fixture
def resolved(folder: Path, tmp_path: Path) -> ResolvedTarget:
    return resolve_target(str(folder), tmp_path / "state")


def _config(folder: Path, tmp_path: Path, **drafter: object) -> Config:
    values = {"vocab_tokens": 64, **drafter}
    return load_config(None, {"state_dir": tmp_path / "state", "target": {"model": str(folder)}, "drafter": values})


def _ship(
    shelf: Path, config: Config, resolved: ResolvedTarget, *, target_id: str = "", spoilt: torch.Tensor | None = None
) -> dict[str, torch.Tensor]:
    """Another seed's weights, so that they are not a new drafter's; `spoilt` takes one tensor's place."""
    other = config.drafter.model_copy(update={"seed": 5})
    shapes, state = create_initial(config.model_copy(update={"drafter": other}), resolved.folder)
    manifest = WeightManifest(
        number=9, kind="feature", config=shapes, config_hash="", parent=None, digest="", gate=_GATE, training_step=50
    )
    path = shelf / f"{slug(resolved.target_id)}.feature.safetensors"
    weights = state if spoilt is None else {**state, "fuse.weight": spoilt}
    write_drafter(path, target_id or resolved.target_id, manifest, weights, {"answers": "4075"})
    return state


def _first(config: Config, resolved: ResolvedTarget) -> tuple[WeightManifest, dict[str, torch.Tensor]]:
    store = open_store(config, resolved)
    ensure_first_version(config, resolved, store)
    return store.load(1)


def test_it_is_version_one(folder: Path, tmp_path: Path, shelf: Path, resolved: ResolvedTarget) -> None:
    config = _config(folder, tmp_path)
    state = _ship(shelf, config, resolved)
    manifest, published = _first(config, resolved)
    assert manifest.note == "shipped; distilled on 4,075 answers" and manifest.gate == _GATE
    for name, tensor in published.items():
        expected = state[name].bfloat16().float() if state[name].is_floating_point() else state[name]
        assert torch.equal(tensor, expected) and tensor.dtype == state[name].dtype, name


def test_it_serves(folder: Path, tmp_path: Path, shelf: Path, resolved: ResolvedTarget) -> None:
    config = _config(folder, tmp_path)
    _ship(shelf, config, resolved)
    engine = open_engine(config)
    [*_, last] = engine.generate(["the sea"], SamplingParams(temperature=0.0, max_tokens=8))
    assert engine.status().drafter_version == 1 and last.stats is not None
    latest = open_store(config, resolved).latest()
    assert latest is not None and latest.note.startswith("shipped")


def test_a_version_that_is_there_stays(folder: Path, tmp_path: Path, shelf: Path, resolved: ResolvedTarget) -> None:
    assert _first(_config(folder, tmp_path), resolved)[0].note == "untrained"
    _ship(shelf, _config(folder, tmp_path), resolved)
    assert _first(_config(folder, tmp_path), resolved)[0].note == "untrained"


def test_it_is_left_out_on_request(folder: Path, tmp_path: Path, shelf: Path, resolved: ResolvedTarget) -> None:
    config = _config(folder, tmp_path, pretrained=False)
    _ship(shelf, config, resolved)
    assert _first(config, resolved)[0].note == "untrained"


@pytest.mark.parametrize("shape", [{"vocab_tokens": 32}, {"window_tokens": 16}])
def test_another_shape_starts_untrained(
    folder: Path,
    tmp_path: Path,
    shelf: Path,
    resolved: ResolvedTarget,
    shape: dict[str, int],
    caplog: pytest.LogCaptureFixture,
) -> None:
    _ship(shelf, _config(folder, tmp_path), resolved)
    with caplog.at_level(logging.INFO):
        manifest, _ = _first(_config(folder, tmp_path, **shape), resolved)
    assert manifest.note == "untrained" and next(iter(shape)) in caplog.text


def test_another_size_of_target_starts_untrained(
    tmp_path: Path, folder: Path, shelf: Path, resolved: ResolvedTarget, caplog: pytest.LogCaptureFixture
) -> None:
    _ship(shelf, _config(folder, tmp_path), resolved)
    namesake = save_llama(tmp_path / "other" / folder.name, extra_tokens=3)
    config = _config(namesake, tmp_path)
    other = resolve_target(str(namesake), config.state_dir)
    assert other.target_id == resolved.target_id
    with caplog.at_level(logging.INFO):
        assert _first(config, other)[0].note == "untrained"
    assert "target_vocab_tokens" in caplog.text


def test_another_target_of_the_same_file_name_starts_untrained(
    folder: Path, tmp_path: Path, shelf: Path, resolved: ResolvedTarget, caplog: pytest.LogCaptureFixture
) -> None:
    config = _config(folder, tmp_path)
    _ship(shelf, config, resolved, target_id="some/model")
    with caplog.at_level(logging.INFO):
        assert _first(config, resolved)[0].note == "untrained"
    assert "'some/model'" in caplog.text


@pytest.mark.parametrize("spoilt", [torch.zeros(3, 3), torch.tensor(torch.nan).expand(32, 64)])
def test_weights_that_could_not_serve_are_left_alone(
    folder: Path,
    tmp_path: Path,
    shelf: Path,
    resolved: ResolvedTarget,
    spoilt: torch.Tensor,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = _config(folder, tmp_path)
    _ship(shelf, config, resolved, spoilt=spoilt)
    assert _first(config, resolved)[0].note == "untrained"
    assert "fuse.weight" in caplog.text and "WARNING" in caplog.text


def test_a_torn_file_is_said_and_left_alone(
    folder: Path, tmp_path: Path, shelf: Path, resolved: ResolvedTarget, caplog: pytest.LogCaptureFixture
) -> None:
    config = _config(folder, tmp_path)
    _ship(shelf, config, resolved)
    [path] = shelf.iterdir()
    path.write_bytes(path.read_bytes()[:-50])
    assert _first(config, resolved)[0].note == "untrained"
    assert str(path) in caplog.text


def test_a_target_without_one_starts_untrained(
    folder: Path, tmp_path: Path, shelf: Path, resolved: ResolvedTarget, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        assert _first(_config(folder, tmp_path), resolved)[0].note == "untrained"
    assert "is not used" not in caplog.text, "there is nothing to warn of"
