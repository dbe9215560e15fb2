"""Tokenizers of every kind that models come with, trained here on a few lines."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

LINES = [
    "It was a cold day, and cold days are long.",
    "The users asked the assistant: what is the system?",
    "def add(a, b):\n    return a + b\n",
    "Steps:\n\n1. Mix 250 g of flour with water.\n2. Wait.",
    "She said hello to the world, and the world said hello.",
]
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Special tokens around each turn."""
KINDS = [
    "byte-level",
    "byte-level, known words",
    "byte fallback",
    "byte fallback, legacy",
    "unigram",
    "wordpiece",
]


def tokenizer_of(kind: str, chat_template: str = CHATML) -> Any:
    """A trained tokenizer of one of `KINDS`, as transformers hands it out."""
    tokenizer = _TRAINED.get(kind) or _TRAINED.setdefault(kind, _train(kind))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", additional_special_tokens=SPECIAL[2:]
    )
    fast.chat_template = chat_template
    return fast


_TRAINED: dict[str, Tokenizer] = {}


def _train(kind: str) -> Tokenizer:
    trainer: trainers.Trainer
    match kind:
        case "byte-level" | "byte-level, known words":
            # GPT-2, SmolLM2, Qwen; Llama 3 takes words that it knows whole.
            tokenizer = Tokenizer(models.BPE(ignore_merges="known" in kind))
            tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            tokenizer.decoder = decoders.ByteLevel()
            alphabet = pre_tokenizers.ByteLevel.alphabet()
            trainer = trainers.BpeTrainer(
                vocab_size=400, initial_alphabet=alphabet, special_tokens=SPECIAL, show_progress=False
            )
        case "byte fallback" | "byte fallback, legacy":
            # Llama 2 and Mistral: spaces are U+2581, what has no piece is bytes, the first space is not written out.
            tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<0x00>"))
            if "legacy" in kind:
                tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
            else:
                tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
            tokenizer.decoder = decoders.Sequence(
                [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
            )
            pieces = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
            trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=pieces, show_progress=False)
        case "unigram":  # XLM-R, T5; special tokens are pieces like any other to the model
            tokenizer = Tokenizer(models.Unigram())
            tokenizer.normalizer = normalizers.Replace(Regex(" {2,}"), " ")
            tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
            tokenizer.decoder = decoders.Metaspace()
            trainer = trainers.UnigramTrainer(
                vocab_size=120, special_tokens=["<unk>", *SPECIAL], unk_token="<unk>", show_progress=False
            )
        case "wordpiece":
            tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
            tokenizer.normalizer = normalizers.BertNormalizer()
            tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
            tokenizer.decoder = decoders.WordPiece()
            trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=["[UNK]", *SPECIAL], show_progress=False)
    tokenizer.train_from_iterator(LINES, trainer)
    # Bytes were trained as special tokens, so that nothing is merged into them, but they are text.
    return without_added_tokens(tokenizer, lambda token: token.startswith("<0x"))


def without_added_tokens(tokenizer: Tokenizer, leave_out: Callable[[str], bool] = lambda token: True) -> Tokenizer:
    """A tokenizer to which some added tokens, by default all, are pieces of text like any others."""
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [added for added in state["added_tokens"] if not leave_out(added["content"])]
    return Tokenizer.from_str(json.dumps(state))
