"""A transformers configuration from a GGUF file's metadata."""

from __future__ import annotations

from typing import Any

import numpy as np
from gguf.quants import dequantize
from numpy.typing import NDArray

from osd.loading.gguf.architectures import ARCHITECTURES, Architecture
from osd.loading.gguf.header import Header
from osd.loading.gguf.metadata import ModelKeys
from osd.loading.gguf.rope import rope_parameters
from osd.loading.gguf.tensors import read_tensor
from osd.records.errors import OsdError

ROPE_DIVISORS = "rope_freqs.weight"
_SIZES = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
}
_NEUTRAL = ("vocab_size", "tensor_data_layout", "expert_used_count")
"""Metadata keys that add nothing to what the tensors' shapes say."""


def architecture_of(header: Header) -> Architecture:
    """The architecture of a file.

    Raises:
        OsdError: the file is not a language model, or its architecture cannot be converted.
    """
    kind = header.metadata.get("general.type", "model")
    if kind != "model":
        raise OsdError(f"{header.path} holds a {kind!r}, not a language model; give the model's own file")
    if header.architecture not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise OsdError(
            f"{header.path} is of architecture {header.architecture!r}; GGUF files are read of {known}: "
            "give the model's own folder (safetensors) or its hub id"
        )
    return ARCHITECTURES[header.architecture]


def read_config(header: Header) -> Any:
    """The transformers configuration of the model in a file.

    Raises:
        OsdError: a metadata key is missing, or has a value that is not supported.
    """
    from transformers import AutoConfig

    architecture = architecture_of(header)
    keys = ModelKeys(header)
    fields = {field: keys.need(name) for name, field in _SIZES.items()}
    fields["num_key_value_heads"] = keys.get("attention.head_count_kv", fields["num_attention_heads"])
    fields["head_dim"] = _head_size(keys, fields)
    fields[architecture.norm_eps[1]] = keys.need(architecture.norm_eps[0])
    fields["rope_parameters"] = rope_parameters(keys, fields["head_dim"], _divisors(header))
    fields["vocab_size"] = _vocab_size(header)
    fields["tie_word_embeddings"] = "output.weight" not in header.tensors
    fields |= {field: keys.need(name) for name, field in architecture.keys.items()}
    fields |= {field: name in header.tensors for field, name in architecture.switches.items()}
    for name, values in architecture.expected.items():
        keys.expect(name, *values)
    architecture.complete(keys, fields)
    _expect_wide_window(keys, fields)
    keys.expect("attention.causal", True)
    keys.ignore(_NEUTRAL)
    keys.refuse_rest()
    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))  # they are in generation_config.json
    return AutoConfig.for_model(architecture.model_type, **ids, **fields)


def _head_size(keys: ModelKeys, fields: dict[str, Any]) -> int:
    size = int(keys.get("attention.key_length", fields["hidden_size"] // fields["num_attention_heads"]))
    keys.expect("attention.value_length", size)
    keys.expect("rope.dimension_count", size)
    return size


def _expect_wide_window(keys: ModelKeys, fields: dict[str, Any]) -> None:
    """Accept a window in an architecture without one only if it covers the whole context, and so has no effect."""
    window = keys.get("attention.sliding_window", 0)
    if "sliding_window" not in fields and 0 < window < fields["max_position_embeddings"]:
        raise keys.refusal("attention.sliding_window", f"is {window}, less than the context: it is not supported")


def _vocab_size(header: Header) -> int:
    if "token_embd.weight" not in header.tensors:
        raise OsdError(f"{header.path} lacks the tensor 'token_embd.weight'; download it again, with all of its parts")
    return header.tensors["token_embd.weight"].shape[0]


def _divisors(header: Header) -> NDArray[np.float32] | None:
    info = header.tensors.get(ROPE_DIVISORS)
    return None if info is None else dequantize(read_tensor(info), info.kind)
