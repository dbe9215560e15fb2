"""GGUF files against the transformers models that they were made from: every weight, every part of the metadata."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from osd.loading.causal_lm import load_causal_lm
from osd.loading.gguf.architectures import ARCHITECTURES
from osd.loading.gguf.rope import _llama3_divisors
from osd.loading.resolve import resolve_target
from osd.records.errors import OsdError
from tests.kit.gguf_files import byte_vocabulary, model_metadata, model_tensors, write_gguf
from tests.kit.llama_cpp_logits import logits_of

VOCAB_TOKENS = 258
HEAD_SIZE = 16
IDS = [number * 7 % VOCAB_TOKENS for number in range(96)]


def _model(kind: str = "llama", *, rope: Mapping[str, Any] | None = None, **fields: Any) -> Any:
    """Random weights; a head is wider than hidden size / heads, and positions turn fast enough to matter."""
    sizes = {
        "vocab_size": VOCAB_TOKENS,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, **(rope or {})},
        "rms_norm_eps": 1e-3,
        "head_dim": HEAD_SIZE,
        "initializer_range": 0.3,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        "tie_word_embeddings": False,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **(sizes | fields)), dtype=torch.float32)
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:  # norms and biases are all one or zero at first
                torch.nn.init.uniform_(parameter, 0.5, 1.5) if "norm" in name else torch.nn.init.normal_(parameter)
    return model.eval()


def _file(
    path: Path,
    model: Any,
    architecture: str = "llama",
    *,
    metadata: Mapping[str, Any] | None = None,
    tensors: Mapping[str, Any] | None = None,
    without: str | None = None,
    kind: GGMLQuantizationType | None = None,
) -> Path:
    described = model_metadata(model.config, architecture) | byte_vocabulary() | dict(metadata or {})
    weights = model_tensors(model, architecture, kind=kind) | dict(tensors or {})
    weights.pop(without or "", None)
    return write_gguf(path, {key: value for key, value in described.items() if value is not None}, weights)


def _logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor([IDS])).logits
        return logits


def _converted(path: Path) -> Path:
    return resolve_target(str(path), path.parent / "state").folder


def _loaded(path: Path) -> Any:
    return load_causal_lm(_converted(path), dtype=torch.float32, device=torch.device("cpu"))


def _refusal(path: Path) -> str:
    with pytest.raises(OsdError) as caught:
        resolve_target(str(path), path.parent / "state")
    reason = str(caught.value)
    assert "\n" not in reason, "one line"
    assert not list((path.parent / "state").glob("models/*/")), "nothing half-made is left"
    return reason


SQUARE = {"head_dim": 8}
"""Of architectures whose heads are as wide as hidden size / heads."""
SCALES = {"attention_multiplier": 0.3, "embedding_multiplier": 2.0, "residual_multiplier": 0.5, "logits_scaling": 4.0}
MODELS: Mapping[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llama": ("llama", {}, {}),
    "llama with biases": ("llama", {"attention_bias": True, "mlp_bias": True}, {}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}, {}),
    "qwen2": ("qwen2", SQUARE, {}),
    "qwen3": ("qwen3", {}, {}),
    "phi3": ("phi3", SQUARE, {}),
    "phi3 with a window": ("phi3", SQUARE | {"sliding_window": 24}, {"attention.sliding_window": 24}),
    "gemma": ("gemma", {"tie_word_embeddings": True}, {}),
    "gemma3": (
        "gemma3",
        {
            "tie_word_embeddings": True,
            "num_hidden_layers": 7,
            "sliding_window": 24,
            "query_pre_attn_scalar": HEAD_SIZE,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
                "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0},
            },
        },
        {"attention.sliding_window": 24, "rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
    ),
    "granite": (
        "granite",
        SQUARE | SCALES,
        {"attention.scale": 0.3, "embedding_scale": 2.0, "residual_scale": 0.5, "logit_scale": 4.0},
    ),
    "smollm3": ("smollm3", {"num_hidden_layers": 5}, {}),
    "olmo2": ("olmo2", SQUARE, {}),
    "starcoder2": ("starcoder2", SQUARE, {}),
    "command-r": ("command-r", SQUARE | {"tie_word_embeddings": True, "logit_scale": 0.5}, {"logit_scale": 0.5}),
}
"""Each with its architecture, the configuration, and the keys that say the same."""


def _made(path: Path, name: str) -> tuple[Any, Path]:
    architecture, fields, keys = MODELS[name]
    model = _model(ARCHITECTURES[architecture].model_type, **fields)
    metadata = {f"{architecture}.{key}": value for key, value in keys.items()}
    return model, _file(path, model, architecture, metadata=metadata)


def test_all_architectures_are_tried() -> None:
    assert {architecture for architecture, *_ in MODELS.values()} == ARCHITECTURES.keys()


@pytest.mark.parametrize("name", MODELS)
def test_a_converted_model_gives_its_own_logits(tmp_path: Path, name: str) -> None:
    model, path = _made(tmp_path / "m.gguf", name)
    torch.testing.assert_close(_logits(_loaded(path)), _logits(model))


@pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed")
@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in MODELS if name != "phi3 with a window"])  # it leaves windows out
def test_a_converted_model_gives_llama_cpps_logits(tmp_path: Path, name: str) -> None:
    """That a converted model equals the one it was made from would not show a mistake that the tests' writer shares."""
    _, path = _made(tmp_path / "m.gguf", name)
    ours, theirs = _logits(_loaded(path))[0], logits_of(path, IDS)
    allowed = 1e-2 if name in ("gemma", "gemma3", "starcoder2") else 1e-3  # its GELU is a table of float16
    assert (ours - theirs).norm() < allowed * theirs.norm()


@pytest.mark.parametrize("kind", [GGMLQuantizationType.Q4_1, GGMLQuantizationType.Q8_0, GGMLQuantizationType.BF16])
def test_weights_are_exactly_those_of_the_file(tmp_path: Path, kind: GGMLQuantizationType) -> None:
    model = _model()
    path = _file(tmp_path / "m.gguf", model, kind=kind)
    up = model.state_dict()["model.layers.1.mlp.up_proj.weight"].numpy()
    stored = _loaded(path).state_dict()["model.layers.1.mlp.up_proj.weight"].numpy()
    np.testing.assert_array_equal(stored, dequantize(quantize(up, kind), kind))
    assert np.abs(stored - up).max() > 0, "the type loses something, so this was not the model's own weight"


def test_plain_types_are_kept(tmp_path: Path) -> None:
    model = _model().bfloat16()
    folder = _converted(_file(tmp_path / "m.gguf", model, kind=GGMLQuantizationType.BF16))
    config = AutoConfig.from_pretrained(folder)
    assert (config.dtype, config.osd_dequantised) == (torch.bfloat16, False)
    assert load_file(folder / "model.safetensors")["model.layers.0.mlp.up_proj.weight"].dtype == torch.bfloat16


def test_quantised_weights_become_float32_and_are_marked(tmp_path: Path) -> None:
    folder = _converted(_file(tmp_path / "m.gguf", _model(), kind=GGMLQuantizationType.Q8_0))
    config = AutoConfig.from_pretrained(folder)
    assert (config.dtype, config.osd_dequantised) == (torch.float32, True)


def test_weights_beyond_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("osd.loading.gguf.tensors.SHARD_BYTES", 20_000)
    model = _model()
    path = _file(tmp_path / "m.gguf", model)
    torch.testing.assert_close(_logits(_loaded(path)), _logits(model))
    assert len(list(_converted(path).glob("model-*.safetensors"))) > 2


# ---- tensors that are missing or too many --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["blk.1.ffn_down.weight", "token_embd.weight", "output_norm.weight"])
def test_a_file_that_lacks_a_tensor(tmp_path: Path, name: str) -> None:
    """transformers would fill it with random numbers, and serve those."""
    assert f"lacks the tensor {name!r}" in _refusal(_file(tmp_path / "m.gguf", _model(), without=name))


def test_a_bias_that_has_no_place(tmp_path: Path) -> None:
    extra = {"blk.0.attn_k.bias": np.ones(32, np.float32)}
    assert "'blk.0.attn_k.bias' that llama models here have no place for" in _refusal(
        _file(tmp_path / "m.gguf", _model(), tensors=extra)
    )


def test_a_layer_more_than_the_metadata_says(tmp_path: Path) -> None:
    assert "'blk.1." in _refusal(_file(tmp_path / "m.gguf", _model(), metadata={"llama.block_count": 1}))


def test_a_weight_of_another_shape(tmp_path: Path) -> None:
    reason = _refusal(_file(tmp_path / "m.gguf", _model(), metadata={"llama.feed_forward_length": 96}))
    assert "has shape (64, 32), and the metadata asks for (96, 32)" in reason


def test_a_file_that_ends_early(tmp_path: Path) -> None:
    path = _file(tmp_path / "m.gguf", _model())
    path.write_bytes(path.read_bytes()[:-200])
    assert "is cut short or damaged (tensor '" in _refusal(path)


# ---- split files ---------------------------------------------------------------------------------------------------


def _split(folder: Path, model: Any, count: int = 3) -> list[Path]:
    """The tensors of a model dealt out to files, as `llama-gguf-split` writes them."""
    tensors = model_tensors(model, "llama")
    described = model_metadata(model.config, "llama") | byte_vocabulary()
    paths = []
    for number in range(count):
        part = {"split.no": number, "split.count": count, "split.tensors.count": len(tensors)}
        metadata = (described if number == 0 else {"general.architecture": "llama"}) | part
        held = {name: tensors[name] for name in list(tensors)[number::count]}
        paths.append(write_gguf(folder / f"big-{number + 1:05}-of-{count:05}.gguf", metadata, held))
    return paths


def test_all_parts_of_a_split_file_are_read(tmp_path: Path) -> None:
    model = _model()
    paths = _split(tmp_path, model)
    torch.testing.assert_close(_logits(_loaded(paths[0])), _logits(model))
    first, second = (resolve_target(str(path), tmp_path / "state") for path in paths[:2])
    assert first == second, "any part stands for all of them"
    assert first.target_id == "big"


def test_a_part_that_is_missing(tmp_path: Path) -> None:
    paths = _split(tmp_path, _model())
    paths[1].unlink()
    assert "big-00002-of-00003.gguf is missing" in _refusal(paths[0])


def test_a_part_under_a_name_that_is_none(tmp_path: Path) -> None:
    path = _split(tmp_path, _model())[0].rename(tmp_path / "renamed.gguf")
    assert "is one of 3 parts; name them renamed-00001-of-00003.gguf" in _refusal(path)


def test_a_part_of_another_model(tmp_path: Path) -> None:
    paths = _split(tmp_path, _model())
    paths[2].write_bytes(paths[1].read_bytes())
    assert "big-00003-of-00003.gguf is not part 3 of 3" in _refusal(paths[0])


# ---- rotary scaling ------------------------------------------------------------------------------------------------

LINEAR = {"rope_type": "linear", "factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
SLOW_YARN = YARN | {"beta_fast": 16.0, "beta_slow": 2.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.mark.parametrize(
    ("rope", "metadata"),
    [
        (LINEAR, {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}),
        (LINEAR, {"rope.scaling.factor": 4.0}),
        (LINEAR, {"rope.scale_linear": 4.0}),
        (YARN, {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 32}),
        (
            SLOW_YARN,
            {
                "rope.scaling.type": "yarn",
                "rope.scaling.factor": 4.0,
                "rope.scaling.original_context_length": 32,
                "rope.scaling.yarn_beta_fast": 16.0,
                "rope.scaling.yarn_beta_slow": 2.0,
            },
        ),
        ({}, {"rope.scaling.type": "none", "rope.scaling.factor": 4.0}),
    ],
)
@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_scaled_positions(tmp_path: Path, architecture: str, rope: dict[str, Any], metadata: dict[str, Any]) -> None:
    scaled = _model(architecture, rope=rope)
    keys = {f"{architecture}.{name}": value for name, value in metadata.items()}
    path = _file(tmp_path / "m.gguf", scaled, architecture, metadata=keys)
    torch.testing.assert_close(_logits(_loaded(path)), _logits(scaled))
    if rope:
        assert (_logits(scaled) - _logits(_model(architecture))).abs().max() > 0.1, "the scaling matters"


def test_llama_3_scaling_is_read_from_its_tensor(tmp_path: Path) -> None:
    scaled = _model(rope=LLAMA3 | {"rope_theta": 500000.0})
    divisors = _llama3_divisors(500000.0, HEAD_SIZE, 8.0).astype(np.float32)
    assert 1.0 in divisors
    assert 8.0 in divisors
    path = _file(tmp_path / "m.gguf", scaled, tensors={"rope_freqs.weight": divisors})
    torch.testing.assert_close(_logits(_loaded(path)), _logits(scaled))


def test_the_divisors_are_those_of_transformers() -> None:
    plain, scaled = _model(rope={"rope_theta": 500000.0}), _model(rope=LLAMA3 | {"rope_theta": 500000.0})
    ratio = plain.model.rotary_emb.inv_freq / scaled.model.rotary_emb.inv_freq
    np.testing.assert_allclose(ratio.numpy(), _llama3_divisors(500000.0, HEAD_SIZE, 8.0), rtol=1e-5)


def test_other_divisors_are_refused(tmp_path: Path) -> None:
    divisors = np.linspace(1, 8, HEAD_SIZE // 2, dtype=np.float32)
    reason = _refusal(_file(tmp_path / "m.gguf", _model(), tensors={"rope_freqs.weight": divisors}))
    assert "a rope_freqs.weight that is not Llama 3's scaling" in reason


@pytest.mark.parametrize(
    ("metadata", "named"),
    [
        ({"llama.rope.scaling.type": "longrope", "llama.rope.scaling.factor": 4.0}, "llama.rope.scaling.type is"),
        ({"llama.rope.scaling.attn_factor": 1.2}, "llama.rope.scaling.attn_factor is 1.2"),
        ({"llama.rope.dimension_count": 8}, "llama.rope.dimension_count is 8"),
        ({"llama.attention.sliding_window": 64}, "llama.attention.sliding_window is 64, less than the context"),
        ({"llama.attention.value_length": 8}, "llama.attention.value_length is 8"),
        ({"llama.attention.layer_norm_rms_epsilon": None}, "llama.attention.layer_norm_rms_epsilon is missing"),
        ({"llama.expert_count": 8}, "llama.expert_count is 8"),
        ({"llama.attention.causal": False}, "llama.attention.causal is False"),
        ({"llama.logit_scale": 2.0}, "llama.logit_scale is not known"),
        ({"llama.attention.head_count_kv": [2, 1]}, "llama.attention.head_count_kv differs from layer to layer"),
        ({"general.architecture": "mamba"}, "is of architecture 'mamba'; GGUF files are read of"),
        ({"general.type": "adapter"}, "holds a 'adapter', not a language model"),
    ],
)
def test_metadata_that_would_be_dropped_is_refused(tmp_path: Path, metadata: dict[str, Any], named: str) -> None:
    assert named in _refusal(_file(tmp_path / "m.gguf", _model(), metadata=metadata))


def test_a_window_as_wide_as_the_context_is_none(tmp_path: Path) -> None:
    model = _model()
    path = _file(tmp_path / "m.gguf", model, metadata={"llama.attention.sliding_window": 128})
    torch.testing.assert_close(_logits(_loaded(path)), _logits(model))
