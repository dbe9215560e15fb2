"""Tiny GGUF files made from random models, with the `gguf` package's writer: for tests of what reads them."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import MODEL_ARCH_NAMES, GGMLQuantizationType, GGUFWriter, get_tensor_name_map
from gguf.quants import quantize
from tokenizers import pre_tokenizers
from torch import Tensor

EOS = "<|end|>"
LINE_FEED = "\u010a"
"""A line feed as byte-level vocabularies spell it."""


_LAYER_NORM = "attention.layer_norm_epsilon"
_EPSILONS = {"starcoder2": ("norm_epsilon", _LAYER_NORM), "command-r": ("layer_norm_eps", _LAYER_NORM)}


def write_gguf(path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, Any] | None = None) -> Path:
    """Write a file with exactly this metadata and these arrays; an (array, type) pair is quantised to that type."""
    writer = GGUFWriter(path, metadata["general.architecture"])
    for key, value in metadata.items():
        if key == "general.architecture":
            continue
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            (writer.add_uint32 if key not in ("split.no", "split.count") else writer.add_uint16)(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    for name, value in (tensors or {}).items():
        if isinstance(value, tuple):
            array, kind = value
            writer.add_tensor(name, quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def byte_vocabulary(extra: Mapping[str, int] | None = None) -> dict[str, Any]:
    """The metadata of a byte-level tokenizer that merges two line feeds; `extra` maps further tokens to their kinds."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    extra = {LINE_FEED * 2: 1, **(extra or {EOS: 3})}
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [*alphabet, *extra],
        "tokenizer.ggml.token_type": [1] * len(alphabet) + list(extra.values()),
        "tokenizer.ggml.merges": [f"{LINE_FEED} {LINE_FEED}"],
        "tokenizer.ggml.eos_token_id": len(alphabet) + 1,
    }


def model_metadata(config: Any, architecture: str) -> dict[str, Any]:
    """A plain decoder's metadata, as llama.cpp's converter writes it."""
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = config.rope_parameters.get("full_attention", config.rope_parameters)
    sizes = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": head_size,
        "attention.value_length": head_size,
        "rope.dimension_count": head_size,
        "rope.freq_base": float(rope["rope_theta"]),
    }
    field, key = _EPSILONS.get(architecture, ("rms_norm_eps", "attention.layer_norm_rms_epsilon"))
    sizes[key] = float(getattr(config, field))
    described = {f"{architecture}.{name}": value for name, value in sizes.items()}
    return {"general.architecture": architecture, "general.name": "tiny", **described}


def model_tensors(model: Any, architecture: str, *, kind: GGMLQuantizationType | None = None) -> dict[str, Any]:
    """A model's weights with the names and row orders of llama.cpp's converter; with `kind`, matrices are quantised."""
    number = next(arch for arch, name in MODEL_ARCH_NAMES.items() if name == architecture)
    names = get_tensor_name_map(number, model.config.num_hidden_layers)
    tied = model.config.tie_word_embeddings
    tensors: dict[str, Any] = {}
    for name, weight in model.state_dict().items():
        if tied and name == "lm_head.weight":
            continue
        stem, _, suffix = name.rpartition(".")
        array = _turned(f"{names.get_name(stem)}.{suffix}", weight, model.config, architecture).float().numpy()
        quantised = kind is not None and array.ndim > 1
        tensors[f"{names.get_name(stem)}.{suffix}"] = (array, kind) if quantised else np.ascontiguousarray(array)
    return tensors


def _turned(name: str, weight: Tensor, config: Any, architecture: str) -> Tensor:
    """Llama's query and key rows go from halves to neighbouring pairs, and Gemma's norms have one added."""
    part = name.split(".")[-2]
    if architecture.startswith("gemma") and part.endswith("norm"):
        return weight + 1
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(part)
    if architecture not in ("llama", "granite", "smollm3") or heads is None:
        return weight
    return weight.reshape(heads, 2, -1, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


def pair_vocabulary(texts: Iterable[str], pre: str) -> dict[str, Any]:
    """A byte-level vocabulary in which any two adjacent bytes of the texts merge, so that every split shows."""
    joined = "\n\n".join(texts)
    spelt = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(joined)[0][0]
    pairs = sorted({first + second for first, second in zip(spelt, spelt[1:], strict=False)})
    random.Random(0).shuffle(pairs)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *pairs, "<s>", "<|im_start|>", EOS]
    return {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * (len(tokens) - 3) + [3] * 3,
        "tokenizer.ggml.merges": [" ".join(pair) for pair in pairs],
        "tokenizer.ggml.bos_token_id": len(tokens) - 3,
        "tokenizer.ggml.eos_token_id": len(tokens) - 1,
    }


def sentencepiece_vocabulary(**options: Any) -> dict[str, Any]:
    """A SentencePiece vocabulary: pieces with scores, byte pieces, and three kinds of added tokens."""
    pieces = ["\u2581", *"abcdefghilmnorstuwy.,", "he", "th", "the", "\u2581the", "\u2581t", "in", "ing", "er", "an"]
    pieces += ["\u2581a", "and", "\u2581and", "re", "\u2581w", "\u2581wor", "ld", "\u2581world", "or", "\u2581\u2581"]
    special = {"<unk>": 2, "<s>": 3, "</s>": 3}
    added = {"<|user|>": 3, "<think>": 4, "  ": 4}
    num_bytes = 256
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [*special, *(f"<0x{byte:02X}>" for byte in range(num_bytes)), *pieces, *added],
        "tokenizer.ggml.token_type": [*special.values(), *[6] * num_bytes, *[1] * len(pieces), *added.values()],
        "tokenizer.ggml.scores": [0.0] * (len(special) + num_bytes)
        + [-float(number) for number in range(len(pieces))]
        + [0.0] * len(added),
        **{f"tokenizer.ggml.{name}": value for name, value in options.items()},
    }
