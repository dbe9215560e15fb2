"""From what an operator typed to a whole model folder, or one line that says what is wrong."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from safetensors.torch import load_file, save_file

from osd.loading.causal_lm import choose_device, choose_dtype, load_causal_lm
from osd.loading.gguf.digest import digest_of
from osd.loading.resolve import check_model_folder, resolve_target
from osd.records.errors import OsdError
from tests.kit.engine_kit import tiny_llama
from tests.kit.gguf_files import byte_vocabulary, model_metadata, model_tensors, write_gguf
from tests.kit.saved_models import save_llama


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


def test_weights_that_the_model_has_no_place_for(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """transformers leaves them out: of a bias that is switched off in config.json, the answers would tell."""
    path = folder / "model.safetensors"
    state = load_file(path) | {"vision.patch.weight": torch.ones(1)}
    save_file(state, path, metadata={"format": "pt"})
    load_causal_lm(folder, dtype=torch.float32, device=torch.device("cpu"))
    assert f"1 weights in {folder} are not used, such as vision.patch.weight" in caplog.text
    save_file(state | {"model.layers.0.mlp.up_proj.bias": torch.ones(48)}, path, metadata={"format": "pt"})
    with pytest.raises(OsdError, match="have 'model.layers.0.mlp.up_proj.bias', and its config.json has no place"):
        load_causal_lm(folder, dtype=torch.float32, device=torch.device("cpu"))


@pytest.mark.parametrize("config", ["{", '{"model_type": "no-such-model"}', '{"model_type": "t5"}'])
def test_a_config_of_something_else(folder: Path, config: str) -> None:
    (folder / "config.json").write_text(config)
    with pytest.raises(OsdError, match="cannot load a causal LM from") as caught:
        load_causal_lm(folder, dtype=torch.float32, device=torch.device("cpu"))
    assert "\n" not in str(caught.value)


# ---- GGUF ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a zip", b"<!DOCTYPE html>"])
def test_a_gguf_that_is_none(tmp_path: Path, state_dir: Path, content: bytes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    assert "is not a GGUF file (wrong magic bytes)" in _reason(path, state_dir)


def test_a_gguf_that_is_cut_short(tmp_path: Path, state_dir: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF\x03\x00\x00\x00" + b"\x01" + bytes(15))
    assert "is cut short or damaged (its header ends early); download it again" in _reason(path, state_dir)


@pytest.mark.parametrize(("version", "what"), [(1, "of GGUF version 1"), (3 << 24, "big-endian")])
def test_a_gguf_of_another_version(tmp_path: Path, state_dir: Path, version: int, what: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + version.to_bytes(4, "little") + bytes(16))
    assert f"is {what}; osd reads little-endian files" in _reason(path, state_dir)


def _gguf(path: Path, seed: int = 0) -> Path:
    """A file of random weights; those of another seed make one of the same size."""
    vocabulary = byte_vocabulary()
    model = tiny_llama(seed, vocab_tokens=len(vocabulary["tokenizer.ggml.tokens"]))
    path.parent.mkdir(exist_ok=True)
    return write_gguf(path, model_metadata(model.config, "llama") | vocabulary, model_tensors(model, "llama"))


def _embedding(folder: Path) -> torch.Tensor:
    return load_file(folder / "model.safetensors")["model.embed_tokens.weight"]


def test_a_gguf_is_converted_once(tmp_path: Path, state_dir: Path) -> None:
    path = _gguf(tmp_path / "My Model.Q4.gguf")
    stages: list[str] = []
    first = resolve_target(str(path), state_dir, lambda stage, share: stages.append(stage))
    assert stages[0] == "converting My Model.Q4.gguf (once)"
    assert stages[-1] == "done"
    written_ns = (first.folder / "model.safetensors").stat().st_mtime_ns
    stages.clear()
    assert resolve_target(str(path), state_dir, lambda stage, share: stages.append(stage)) == first
    assert stages == []
    assert (first.folder / "model.safetensors").stat().st_mtime_ns == written_ns
    assert first.target_id == "My-Model.Q4"
    check_model_folder(first.folder)


def test_what_a_killed_conversion_left_behind_is_removed(tmp_path: Path, state_dir: Path) -> None:
    """It may be as large as the model in float32."""
    path = _gguf(tmp_path / "model.gguf")
    folder = resolve_target(str(path), state_dir).folder
    half, foreign = folder.with_name(f".{folder.name}-a1b2"), folder.with_name(f".other-{folder.name}-a1b2")
    folder.rename(half)
    foreign.mkdir()
    assert resolve_target(str(path), state_dir).folder == folder
    assert not half.exists() and foreign.exists()


def test_a_gguf_overwritten_with_other_weights_is_converted_again(tmp_path: Path, state_dir: Path) -> None:
    """Of the same name and size, in place or anew, with the old time of modification or another."""
    path, other = _gguf(tmp_path / "model.gguf"), _gguf(tmp_path / "other.gguf", seed=1)
    before, after = path.stat(), other.stat()
    assert before.st_size == after.st_size
    first = resolve_target(str(path), state_dir)
    with path.open("r+b") as file:
        file.write(other.read_bytes())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    second = resolve_target(str(path), state_dir)
    assert second.folder != first.folder
    assert torch.equal(
        _embedding(second.folder), tiny_llama(1, vocab_tokens=258).state_dict()["model.embed_tokens.weight"]
    )
    assert not torch.equal(_embedding(first.folder), _embedding(second.folder))


def test_ggufs_of_one_name_in_two_folders(tmp_path: Path, state_dir: Path) -> None:
    here, there = _gguf(tmp_path / "a" / "model.gguf"), _gguf(tmp_path / "b" / "model.gguf", seed=1)
    assert resolve_target(str(here), state_dir).folder != resolve_target(str(there), state_dir).folder
    there.write_bytes(here.read_bytes())
    assert resolve_target(str(here), state_dir) == resolve_target(str(there), state_dir), "by content alone"


def test_a_digest_is_remembered_until_the_file_changes(
    tmp_path: Path, state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one")
    state_dir.mkdir()
    digest = digest_of([path], state_dir)
    assert not (state_dir / "digests.json").exists(), "it may change again within a step of the file system's clock"
    monkeypatch.setattr("osd.loading.gguf.digest._SETTLED_S", -3600.0)
    assert digest_of([path], state_dir) == digest
    remembered = json.loads((state_dir / "digests.json").read_text())
    remembered[str(path)]["digest"] = "from memory"
    (state_dir / "digests.json").write_text(json.dumps(remembered))
    assert digest_of([path], state_dir) == "from memory"
    path.write_bytes(b"two")
    assert digest_of([path], state_dir) not in (digest, "from memory")
    (state_dir / "digests.json").write_text("torn")
    path.write_bytes(b"one")
    assert digest_of([path], state_dir) == digest


def test_a_folder_of_an_older_converter_is_not_taken(
    tmp_path: Path, state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _gguf(tmp_path / "model.gguf")
    first = resolve_target(str(path), state_dir)
    monkeypatch.setattr("osd.loading.gguf.convert.CONVERTER_VERSION", 10**6)
    assert resolve_target(str(path), state_dir).folder != first.folder


def test_nothing_half_made_is_left_where_a_conversion_fails(
    tmp_path: Path, state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> NoReturn:
        raise OSError("No space left on device")

    monkeypatch.setattr("osd.loading.gguf.convert._write_tokenizer", full)
    reason = _reason(_gguf(tmp_path / "model.gguf"), state_dir)
    assert "cannot convert" in reason
    assert "No space left on device" in reason


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
