"""From what an operator typed to a whole model folder, or one line that says what is wrong."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from safetensors.torch import load_file, save_file

from osd.models.loading import choose_device, choose_dtype, load_causal_lm
from osd.models.resolve import check_model_folder, resolve_target
from osd.types import OsdError
from tests.saved_models import save_llama


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("models") / "tiny llama")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in whole.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    return copy


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    return tmp_path / "state"


def _reason(name: str | Path, state_dir: Path) -> str:
    with pytest.raises(OsdError) as caught:
        resolve_target(str(name), state_dir)
    reason = str(caught.value)
    assert "\n" not in reason, "one line"
    assert not state_dir.exists() or not list(state_dir.glob("models/*/")), "nothing half-made is left"
    return reason


def test_a_whole_folder_is_taken_as_it_is(whole: Path, state_dir: Path) -> None:
    for _ in range(2):
        resolved = resolve_target(str(whole), state_dir)
        assert (resolved.target_id, resolved.folder) == ("tiny-llama", whole.resolve())
    assert not state_dir.exists()


def test_a_whole_folder_loads(whole: Path) -> None:
    model = load_causal_lm(whole, dtype=torch.float32, device=torch.device("cpu"))
    assert not model.training
    assert model.config._attn_implementation == "sdpa"
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("name", ["/no/such/folder", "./here", "~/there", "nothing", "a/b/c", "model.gguf"])
def test_what_is_not_there(name: str, state_dir: Path) -> None:
    assert f"target '{name}' does not exist; give a folder" in _reason(name, state_dir)


@pytest.mark.parametrize(
    ("missing", "reason"),
    [
        ("config.json", "has no config.json"),
        ("model.safetensors", "has no weights"),
        ("tokenizer.json", "has no tokenizer"),
    ],
)
def test_a_folder_that_lacks_a_file(folder: Path, state_dir: Path, missing: str, reason: str) -> None:
    (folder / missing).unlink()
    assert reason in _reason(folder, state_dir)


def _shard(folder: Path) -> None:
    """Two shards and their index, as large models are saved."""
    state = load_file(folder / "model.safetensors")
    names = sorted(state)
    weight_map = {name: f"model-0000{1 + number % 2}-of-00002.safetensors" for number, name in enumerate(names)}
    for shard in set(weight_map.values()):
        tensors = {name: state[name] for name in names if weight_map[name] == shard}
        save_file(tensors, folder / shard, metadata={"format": "pt"})
    (folder / "model.safetensors").unlink()
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_shards(folder: Path, state_dir: Path) -> None:
    _shard(folder)
    load_causal_lm(resolve_target(str(folder), state_dir).folder, dtype=torch.float32, device=torch.device("cpu"))
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert "is half-written: model-00002-of-00002.safetensors is missing" in _reason(folder, state_dir)


@pytest.mark.parametrize("index", ["{", "{}", '{"weight_map": 3}'])
def test_an_index_that_is_none(folder: Path, state_dir: Path, index: str) -> None:
    (folder / "model.safetensors.index.json").write_text(index)
    assert "is not a weight index" in _reason(folder, state_dir)


@pytest.mark.parametrize("keep_bytes", [0, 5, 3000, -200])
def test_a_truncated_file(folder: Path, keep_bytes: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep_bytes])
    with pytest.raises(OsdError, match="cannot load a causal LM from") as caught:
        load_causal_lm(folder, dtype=torch.float32, device=torch.device("cpu"))
    assert "\n" not in str(caught.value)


def test_weights_that_lack_a_tensor(folder: Path) -> None:
    """transformers would fill it with random numbers, and serve those."""
    path = folder / "model.safetensors"
    state = load_file(path)
    del state["model.layers.1.mlp.up_proj.weight"]
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(OsdError, match="lack 'model.layers.1.mlp.up_proj.weight'"):
        load_causal_lm(folder, dtype=torch.float32, device=torch.device("cpu"))


@pytest.mark.parametrize("config", ["{", '{"model_type": "no-such-model"}', '{"model_type": "t5"}'])
def test_a_config_of_something_else(folder: Path, config: str) -> None:
    (folder / "config.json").write_text(config)
    with pytest.raises(OsdError, match="cannot load a causal LM from") as caught:
        load_causal_lm(folder, dtype=torch.float32, device=torch.device("cpu"))
    assert "\n" not in str(caught.value)


def test_a_check_needs_no_second_look(whole: Path) -> None:
    check_model_folder(whole)
    check_model_folder(whole)


# ---- GGUF ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a zip", b"<!DOCTYPE html>"])
def test_a_gguf_that_is_none(tmp_path: Path, state_dir: Path, content: bytes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    assert "is not a GGUF file (wrong magic bytes)" in _reason(path, state_dir)


def test_a_gguf_that_is_cut_short(tmp_path: Path, state_dir: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF\x03\x00\x00\x00" + bytes(16))
    assert "is it a whole GGUF of a causal LM?" in _reason(path, state_dir)
    assert [entry.suffix for entry in (state_dir / "models").iterdir()] == [".lock"]


def test_a_gguf_is_converted_once(
    tmp_path: Path, state_dir: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The conversion itself is transformers'; around it, a folder appears whole or not at all."""
    path = tmp_path / "My Model.Q4.gguf"
    path.write_bytes(b"GGUF and more")
    conversions = []

    def write_folder(source: Path, scratch: Path, progress: Any) -> None:
        conversions.append(source)
        for file in whole.iterdir():
            (scratch / file.name).write_bytes(file.read_bytes())

    monkeypatch.setattr("osd.models.resolve._write_folder", write_folder)
    first, second = resolve_target(str(path), state_dir), resolve_target(str(path), state_dir)
    assert first == second
    assert first.target_id == "My-Model.Q4"
    assert conversions == [path]
    check_model_folder(first.folder)
    path.write_bytes(b"GGUF of another size")  # another model under the old name
    assert resolve_target(str(path), state_dir).folder != first.folder


# ---- the model hub -------------------------------------------------------------------------------------------------


def test_a_hub_id_without_a_network(state_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*args: object, **kwargs: object) -> NoReturn:
        raise OSError("Network is unreachable")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    reason = _reason("nobody/such-a-model", state_dir)
    assert reason.startswith("cannot get 'nobody/such-a-model' from the model hub: ")
    assert reason.endswith("; check the id, or give a folder")


# ---- devices -------------------------------------------------------------------------------------------------------


def test_devices_and_types() -> None:
    cpu = torch.device("cpu")
    assert choose_device("cpu") == cpu
    assert choose_dtype("float16", cpu) == torch.float16
    assert choose_dtype("auto", cpu) in (torch.bfloat16, torch.float32)
    for name in ("gpu", "cuda:99"):
        with pytest.raises(OsdError, match=f"device '{name}' cannot be used: .*; try --device cpu"):
            choose_device(name)
