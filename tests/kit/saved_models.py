"""Tiny models saved in a folder as `save_pretrained` does, for programs that take a path."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.kit.engine_kit import tiny_llama

EOS = "<|end|>"
CHAT_TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"


def save_tokenizer(folder: Path, *, shift: int = 0, extra_tokens: int = 0) -> int:
    """A byte-level tokenizer without merges; `shift` gives the bytes other ids. Returns the size of its vocabulary."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    shift %= len(alphabet)
    tokens = [*alphabet[shift:], *alphabet[:shift], *(f"<extra{number}>" for number in range(extra_tokens)), EOS]
    tokenizer = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS)
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
    return len(tokens)


def save_llama(
    folder: Path, *, shift: int = 0, extra_tokens: int = 0, seed: int = 0, context_tokens: int | None = None
) -> Path:
    """A random Llama of two layers and hidden size 32 that reads bytes, and never ends an answer by itself."""
    vocab_tokens = save_tokenizer(folder, shift=shift, extra_tokens=extra_tokens)
    model = tiny_llama(seed, vocab_tokens=vocab_tokens)
    if context_tokens is not None:
        model.config.max_position_embeddings = context_tokens
    model.save_pretrained(folder)
    return folder


def save_first_layers(source: Path, folder: Path, num_layers: int) -> Path:
    """A Llama's first layers with its embedding, head and tokenizer."""
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors*"))
    config = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": num_layers}))
    tensors = {}
    for path in source.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a dictionary
                layer = re.match(r"model\.layers\.(\d+)\.", name)
                if layer is None or int(layer[1]) < num_layers:
                    tensors[name] = file.get_tensor(name)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
