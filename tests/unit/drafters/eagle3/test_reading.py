"""What of published heads is read, and why others are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from osd.drafters.eagle3.layout import TargetShape, parse_config
from osd.drafters.eagle3.reading import Head, read_head
from osd.drafters.eagle3.writing import write_head
from osd.kernels.reference.drafting.eagle3_net import ALL_ENTRIES
from osd.records.errors import OsdError
from tests.kit.eagle3_heads import (
    HIDDEN_SIZE,
    VOCAB_TOKENS,
    head_config,
    head_tensors,
    save_head,
    speculators_config,
)

_TARGET = TargetShape(HIDDEN_SIZE, VOCAB_TOKENS, 2)
Tensors = dict[str, Tensor]


def _embedding() -> Tensor:
    return torch.randn(VOCAB_TOKENS, HIDDEN_SIZE, generator=torch.Generator().manual_seed(1))


def _read(path: Path, target: TargetShape = _TARGET) -> Head:
    return read_head(path, target, _embedding())


def _refusal(path: Path, target: TargetShape = _TARGET) -> str:
    with pytest.raises(OsdError) as caught:
        _read(path, target)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    return message


def test_a_head_in_the_plain_form(tmp_path: Path) -> None:
    head, tensors = _read(save_head(tmp_path / "head")), head_tensors(head_config())
    ids_R = torch.arange(16) + tensors["d2t"]
    assert torch.equal(head.state["vocab_ids_R"], ids_R) and head.state["vocab_ids_R"].dtype == torch.int64
    for name in ("fc.weight", "midlayer.self_attn.k_proj.weight", "norm.weight", "lm_head.weight"):
        assert torch.equal(head.state[name], tensors[name])
    config = head.config
    assert (config.target_layers, config.num_key_heads, config.head_size, config.norm_eps) == ([0, 1, 1], 2, 16, 1e-5)
    assert config.rope == {"rope_type": "default", "rope_theta": 500.0}
    assert not config.norm_before_residual and not config.has_embedding and config.window_tokens == ALL_ENTRIES


def test_a_head_of_speculators_is_the_same(tmp_path: Path) -> None:
    """Its layer is `layers.0`, its rotary settings have transformers' present form, and its weights are bfloat16."""
    raw = speculators_config()
    layer = raw["transformer_layer_config"]
    layer["rope_parameters"] = {"rope_type": "default", "rope_theta": layer.pop("rope_theta")}
    tensors = {
        name.replace("midlayer.", "layers.0."): one.bfloat16() if one.is_floating_point() else one
        for name, one in head_tensors(head_config()).items()
    }
    got = _read(save_head(tmp_path / "speculators", raw, tensors))
    plain = _read(save_head(tmp_path / "plain"))
    assert got.config == plain.config
    assert got.state.keys() == plain.state.keys()
    for name, tensor in got.state.items():
        right = plain.state[name]
        assert torch.equal(tensor, right.bfloat16().float() if right.is_floating_point() else right)
        assert tensor.dtype == right.dtype
    assert _read(
        save_head(tmp_path / "before", {**raw, "norm_before_residual": True}, tensors)
    ).config.norm_before_residual


@pytest.mark.parametrize("form", ["its weights file", "sharded", "torch.save"])
def test_files_of_every_form(tmp_path: Path, form: str) -> None:
    tensors = head_tensors(head_config())
    right, folder = _read(save_head(tmp_path / "whole")), save_head(tmp_path / "head")
    path = folder
    if form == "its weights file":
        path = folder / "model.safetensors"
    else:
        (folder / "model.safetensors").unlink()
    if form == "sharded":
        names = sorted(tensors)
        parts = {"a.safetensors": names[:5], "b.safetensors": names[5:]}
        for file, part in parts.items():
            save_file({name: tensors[name].contiguous() for name in part}, folder / file)
        index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    if form == "torch.save":
        torch.save(tensors, folder / "pytorch_model.bin")
    got = _read(path)
    assert got.config == right.config and all(torch.equal(got.state[name], one) for name, one in right.state.items())


@pytest.mark.parametrize(
    ("named", "right"),
    [
        ({"eagle_aux_hidden_state_layer_ids": [2, 5, 9]}, [2, 5, 9]),
        ({"eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, 4, 8]}}, [2, 5, 9]),
        ({"eagle_config": {"eagle_aux_hidden_state_layer_ids": [-1, 4, 8]}}, [0, 5, 9]),
        ({}, [2, 16, 29]),
    ],
)
def test_the_layers_that_it_reads(named: dict[str, Any], right: list[int]) -> None:
    """vLLM counts the layer that a stream enters, SGLang the one that it leaves; both have the same default."""
    raw = head_config()
    del raw["eagle_aux_hidden_state_layer_ids"]
    assert parse_config({**raw, **named}, TargetShape(HIDDEN_SIZE, VOCAB_TOKENS, 32)).target_layers == right


def test_a_copy_of_the_targets_embedding_is_left_out_and_another_is_kept(tmp_path: Path) -> None:
    tensors = head_tensors(head_config())
    same = _read(save_head(tmp_path / "same", tensors={**tensors, "embed_tokens.weight": _embedding()}))
    assert not same.config.has_embedding and "embed_tokens.weight" not in same.state
    own = _read(save_head(tmp_path / "own", tensors={**tensors, "embed_tokens.weight": _embedding() + 1.0}))
    assert own.config.has_embedding and torch.equal(own.state["embed_tokens.weight"], _embedding() + 1.0)


def test_a_whole_vocabulary_needs_no_offsets(tmp_path: Path) -> None:
    raw = head_config(draft_vocab_size=VOCAB_TOKENS)
    tensors = {name: one for name, one in head_tensors(raw).items() if name not in ("d2t", "t2d")}
    assert _read(save_head(tmp_path / "head", raw, tensors)).state["vocab_ids_R"].tolist() == list(range(VOCAB_TOKENS))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"architectures": ["DeepseekV3ForCausalLMEagle3"]},
            "DeepseekV3ForCausalLMEagle3 is not supported",
        ),
        ({"model_type": "qwen3"}, "layer is of type 'qwen3'"),
        ({"num_hidden_layers": 2}, "it has 2 layers"),
        ({"hidden_act": "gelu"}, "activation is 'gelu'"),
        ({"attention_bias": True}, "biases in its attention"),
        ({"mlp_bias": True}, "biases in its MLP"),
        ({"fc_norm": True}, "tensor 'fc_norm.0.weight' is missing"),
        ({"norm_before_fc": True}, "tensor 'input_norm.weight' is missing"),
        ({"eagle_config": {"norm_before_fc": True}}, "tensor 'input_norm.weight' is missing"),
        ({"eagle_config": {"eh_proj_before_attn": True}}, "a projection before its attention"),
        ({"logit_scale": 0.5}, "logit_scale"),
        ({"quantization_config": {"bits": 4}}, "quantised weights"),
        ({"eagle_config": {"use_aux_hidden_state": False}}, "no EAGLE-3 head"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rotary embedding 'dynamic'"),
        ({"hidden_size": 64}, "target of hidden size 64, this one has 32"),
        ({"target_hidden_size": 48}, "target of hidden size 48, this one has 32"),
        ({"vocab_size": 32}, "vocabulary of 32 tokens, the target has 24"),
        ({"eagle_aux_hidden_state_layer_ids": [0, 1, 2]}, "enters layer 2 of the target"),
        ({"eagle_aux_hidden_state_layer_ids": [0, 1]}, "'fc.weight' has shape (32, 96), this drafter's is (32, 64)"),
        ({"intermediate_size": 41}, "'midlayer.mlp.down_proj.weight' has shape"),
        ({"draft_vocab_size": 15}, "'d2t' has shape (16,), draft_vocab_size is 15"),
        ({"hidden_size": None}, "no whole number 'hidden_size'"),
        ({"rope_scaling": "yarn"}, "cannot read"),
    ],
)
def test_configurations_that_are_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    folder = save_head(tmp_path / "head", tensors=head_tensors(head_config()), **changes)
    assert words in _refusal(folder)


def test_a_speculators_head_must_say_where_its_residual_begins(tmp_path: Path) -> None:
    raw = speculators_config()
    del raw["norm_before_residual"]
    assert "lacks norm_before_residual" in _refusal(save_head(tmp_path / "head", raw))
    other = speculators_config(speculators_model_type="dflash")
    assert "'dflash' speculator" in _refusal(save_head(tmp_path / "other", other))


def _without(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: one for key, one in tensors.items() if key != name}


def _with(name: str, make: Callable[[Tensors], Tensor]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, name: make(tensors)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_without("fc.weight"), "tensor 'fc.weight' is missing"),
        (_without("midlayer.hidden_norm.weight"), "tensor 'midlayer.hidden_norm.weight' is missing"),
        (_without("d2t"), "tensor 'd2t' is missing"),
        (_with("midlayer.self_attn.q_norm.weight", lambda _: torch.ones(16)), "q_norm.weight' is unknown"),
        (_with("midlayer.self_attn.q_proj.bias", lambda _: torch.ones(64)), "q_proj.bias' is unknown"),
        (_with("midlayer.mlp.experts.0.up_proj.weight", lambda _: torch.ones(2, 2)), "experts.0.up_proj.weight'"),
        (_with("d2t", lambda w: w["d2t"] + 24), "'d2t' names tokens"),
        (_with("d2t", lambda w: w["d2t"] - 24), "'d2t' names tokens -"),
        (_with("d2t", lambda w: -torch.arange(16)), "'d2t' names a token twice"),
        (_with("t2d", lambda w: ~w["t2d"]), "'t2d' and 'd2t' name different tokens"),
        (_with("norm.weight", lambda w: w["norm.weight"] * torch.nan), "'norm.weight' holds NaN"),
        (_with("lm_head.weight", lambda w: w["lm_head.weight"][:-1]), "'lm_head.weight' has shape (15, 32)"),
        (_with("fc.weight", lambda w: w["fc.weight"].to(torch.int8)), "'fc.weight' has type torch.int8"),
    ],
)
def test_tensors_that_are_refused(tmp_path: Path, change: Callable[[Tensors], Tensors], words: str) -> None:
    assert words in _refusal(save_head(tmp_path / "head", tensors=change(head_tensors(head_config()))))


def test_another_size_needs_an_embedding_of_its_own(tmp_path: Path) -> None:
    raw = head_config(hidden_size=24, target_hidden_size=HIDDEN_SIZE, head_dim=8)
    assert "'embed_tokens.weight' is missing" in _refusal(save_head(tmp_path / "head", raw))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert "config.json" in _refusal(tmp_path / "nowhere")
    folder = save_head(tmp_path / "head")
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-100])
    assert "cannot read" in _refusal(folder)
    (folder / "model.safetensors").unlink()
    assert "no weights" in _refusal(folder)
    (folder / "pytorch_model.bin").write_bytes(b"not a pickle")
    assert "pytorch_model.bin is damaged or holds more than tensors" in _refusal(folder)
    (folder / "config.json").write_text("[]")
    assert "no object" in _refusal(folder)
    (folder / "config.json").write_text("{")
    assert "cannot read" in _refusal(folder)


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    folder = save_head(tmp_path / "head")
    (folder / "model.safetensors").unlink()
    torch.save({"fc.weight": _Surprise()}, folder / "pytorch_model.bin")
    assert "pytorch_model.bin is damaged or holds more than tensors" in _refusal(folder)


class _Surprise:
    pass


@pytest.mark.parametrize("name", ["norm_before_fc", "fc_norm", "norm_output", "norm_before_residual"])
def test_norms_are_read_from_where_they_are_named(name: str) -> None:
    assert not getattr(parse_config(head_config(), _TARGET), name)
    for named in ({name: True}, {"eagle_config": {name: True}}):
        assert getattr(parse_config(head_config(**named), _TARGET), name)
    assert parse_config(head_config(eagle_config={"return_hidden_post_norm": True}), _TARGET).norm_output


def test_what_is_written_is_read_as_the_same(tmp_path: Path) -> None:
    raw = head_config(
        norm_before_residual=True,
        norm_before_fc=True,
        norm_output=True,
        use_sliding_window=True,
        sliding_window=12,
        rope_scaling={"rope_type": "linear", "factor": 2.0},
    )
    tensors = {**head_tensors(raw), "embed_tokens.weight": _embedding() + 1.0}
    head = _read(save_head(tmp_path / "head", raw, tensors))
    write_head(tmp_path / "out", head.config, head.state, torch.float32)
    again = _read(tmp_path / "out")
    assert again.config == head.config
    assert again.state.keys() == head.state.keys()
    assert all(torch.equal(again.state[name], one) for name, one in head.state.items())


LLAMA_3_1_8B = {
    # config.json of the head for Llama-3.1-8B-Instruct that the authors of EAGLE-3 published, and SpecForge's
    # configs/llama3-8B-eagle3.json: the keys that osd reads.
    "architectures": ["LlamaForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 2048,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_hidden_layers": 1,
    "rms_norm_eps": 1e-05,
    "vocab_size": 128256,
    "draft_vocab_size": 32000,
}
SHAPES_OF_LLAMA_3_1_8B = {
    "fc.weight": (4096, 12288),
    "lm_head.weight": (32000, 4096),
    "midlayer.hidden_norm.weight": (4096,),
    "midlayer.input_layernorm.weight": (4096,),
    "midlayer.mlp.down_proj.weight": (4096, 14336),
    "midlayer.mlp.gate_proj.weight": (14336, 4096),
    "midlayer.mlp.up_proj.weight": (14336, 4096),
    "midlayer.post_attention_layernorm.weight": (4096,),
    "midlayer.self_attn.k_proj.weight": (1024, 8192),
    "midlayer.self_attn.o_proj.weight": (4096, 4096),
    "midlayer.self_attn.q_proj.weight": (4096, 8192),
    "midlayer.self_attn.v_proj.weight": (1024, 8192),
    "norm.weight": (4096,),
}
"""The published head's tensors, besides `d2t` int64 [32000] and `t2d` bool [128256]."""


def test_the_published_shapes_of_a_head_for_an_8b_model() -> None:
    config = parse_config(LLAMA_3_1_8B, TargetShape(4096, 128256, 32))
    with torch.device("meta"):
        state = config.network().state_dict()
    shapes = {name: tuple(one.shape) for name, one in state.items()}
    assert shapes == {**SHAPES_OF_LLAMA_3_1_8B, "vocab_ids_R": (32000,)}
    assert (config.head_size, config.target_layers, config.fused_size) == (128, [2, 16, 29], 12288)
    assert config.rope == {"rope_type": "default", "rope_theta": 10_000.0}
