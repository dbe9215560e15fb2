"""Random models of well-known shapes, and a text codec for an engine with one.

A pass's duration depends on the model's shape and not on its weights' values, so nothing is downloaded. The codec
decodes each token to one character, so a real tokenizer's decoding time is not measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from osd.text.codec import TextCodec

_FIRST_CHAR = 0x10000
"""Code point of token 0, above the surrogates and the replacement character."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A Llama's sizes, and the reduced vocabulary of its drafter."""

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_key_heads: int
    vocab_tokens: int
    draft_vocab_tokens: int
    dtype: torch.dtype = torch.bfloat16


SHAPES = {
    "8b": Shape(32, 4096, 14336, 32, 8, 128_256, 32_768),  # Llama-3.1-8B
    "1b": Shape(16, 2048, 8192, 32, 8, 128_256, 32_768),  # Llama-3.2-1B
    "135m": Shape(30, 576, 1536, 9, 3, 49_152, 8192),  # SmolLM2-135M
    "tiny": Shape(2, 64, 128, 4, 2, 512, 64, torch.float32),  # for tests
}

SMALLER = {"8b": "1b", "1b": "135m", "135m": "tiny", "tiny": "tiny"}
"""For each shape, the shape of the small LM that drafts for it."""


def drafter_shape(name: str, target: Shape) -> Shape:
    """The drafter's sizes, with the target's vocabulary and dtype."""
    return replace(SHAPES[name], vocab_tokens=target.vocab_tokens, dtype=target.dtype)


def random_llama(shape: Shape, device: torch.device, seed: int = 0) -> Any:
    """A model that answers by counting up: the next token is the last one plus 1, by a wide margin.

    With entirely random weights the two largest logits are often too close for bfloat16, so that two correct
    implementations soon differ. The head's rows are therefore the embedding's, shifted by one.
    """
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        vocab_size=shape.vocab_tokens,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_key_heads,
        max_position_embeddings=131_072,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), device, torch.no_grad():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=shape.dtype, attn_implementation="sdpa")
        embedding_VH = model.get_input_embeddings().weight.normal_()
        model.lm_head.weight.copy_(embedding_VH.roll(1, dims=0)).mul_(shape.hidden_size**-0.5)
        for layer in model.base_model.layers:  # scaled down, so that the embedding dominates the residual stream
            layer.self_attn.o_proj.weight.mul_((2 * shape.num_layers) ** -0.5)
            layer.mlp.down_proj.weight.mul_((2 * shape.num_layers) ** -0.5)
    return model.to(device).eval().requires_grad_(False)


def weight_bytes(model: Any) -> int:
    """Bytes that one pass reads: every matrix once. The embedding is only looked up in."""
    numbers = sum(parameter.numel() for parameter in model.parameters()) - model.get_input_embeddings().weight.numel()
    return int(numbers * model.dtype.itemsize)


def character_codec(vocab_tokens: int, context_tokens: int) -> TextCodec:
    """A codec with one character per token."""
    return TextCodec(_Characters(vocab_tokens), model_id="random", context_tokens=context_tokens)


class _Characters:
    """The part of a tokenizer that `TextCodec` uses."""

    chat_template = None
    eos_token_id = None

    def __init__(self, vocab_tokens: int) -> None:
        self._vocab_tokens = vocab_tokens

    def __len__(self) -> int:
        return self._vocab_tokens

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [ord(char) - _FIRST_CHAR for char in text]}

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        return "".join(chr(_FIRST_CHAR + token) for token in ids)
