"""Reading the embedding and the head alone, from every layout of files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import osd.loading.shared_rows
from osd.loading.shared_rows import load_shared_rows
from osd.records.errors import OsdError
from tests.kit.trainer_fakes import tiny_llama


def _saved(model: Any, folder: Path, **options: Any) -> Path:
    model.save_pretrained(folder, **options)
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture
def no_whole_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError("the whole model was loaded")

    monkeypatch.setattr(osd.loading.shared_rows, "load_causal_lm", refuse)


@pytest.mark.parametrize("max_shard_size", ["5GB", "2KB"])
@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.usefixtures("no_whole_model")
def test_only_the_shared_tensors_are_read(tmp_path: Path, tie: bool, max_shard_size: str) -> None:
    model = tiny_llama(tie=tie)
    rows = load_shared_rows(_saved(model, tmp_path, max_shard_size=max_shard_size), torch.bfloat16)
    assert (tmp_path / "model.safetensors.index.json").is_file() == (max_shard_size == "2KB")
    assert torch.equal(rows.embedding_VH, model.get_input_embeddings().weight.bfloat16())
    assert torch.equal(rows.head_VH, model.get_output_embeddings().weight.bfloat16())
    assert (rows.head_VH is rows.embedding_VH) == tie
    assert rows.head_bias_V is None


@pytest.mark.usefixtures("no_whole_model")
def test_a_head_with_a_bias(tmp_path: Path) -> None:
    from transformers import PhiConfig, PhiForCausalLM

    config = PhiConfig(vocab_size=24, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    model = PhiForCausalLM(config)
    torch.nn.init.normal_(model.get_output_embeddings().bias)
    rows = load_shared_rows(_saved(model, tmp_path), torch.float32)
    assert rows.head_bias_V is not None
    assert torch.equal(rows.head_bias_V, model.get_output_embeddings().bias)
    assert torch.equal(rows.head_VH, model.get_output_embeddings().weight)


def test_names_that_differ_from_the_model_s_load_it_whole(tmp_path: Path) -> None:
    """GPT-2's published files leave out the `transformer.` that the model's own names begin with."""
    from safetensors.torch import load_file, save_file
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=24, n_positions=32, n_embd=16, n_layer=1, n_head=2))
    path = _saved(model, tmp_path) / "model.safetensors"
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    rows = load_shared_rows(tmp_path, torch.float32)
    assert torch.equal(rows.embedding_VH, model.get_input_embeddings().weight)
    assert torch.equal(rows.head_VH, model.get_input_embeddings().weight)


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OsdError, match="no config.json"):
        load_shared_rows(tmp_path, torch.float32)
