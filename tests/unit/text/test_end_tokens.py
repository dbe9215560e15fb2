"""End tokens: the union of what the files of a folder say."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from osd.text.codec import TextCodec
from osd.text.end_tokens import end_token_ids
from tests.kit.saved_models import save_llama


class _Tokenizer(SimpleNamespace):
    def __len__(self) -> int:
        return 100


def _ends(folder: Path, generation: Any = None, config: Any = None, tokenizer: int | None = None) -> frozenset[int]:
    for name, content in (("generation_config.json", generation), ("config.json", config)):
        if content is not None:
            (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return end_token_ids(folder, _Tokenizer(eos_token_id=tokenizer))


@pytest.mark.parametrize(
    ("generation", "config", "tokenizer", "ends"),
    [
        (None, None, None, set()),
        ({"eos_token_id": 3}, None, None, {3}),
        ({"eos_token_id": [3, 4]}, {"eos_token_id": 5}, 6, {3, 4, 5, 6}),
        (None, {"eos_token_id": [5, 7]}, 6, {5, 6, 7}),
        ({}, {"eos_token_id": None, "text_config": {"eos_token_id": [8]}}, None, {8}),
    ],
)
def test_the_union(tmp_path: Path, generation: Any, config: Any, tokenizer: int | None, ends: set[int]) -> None:
    assert _ends(tmp_path, generation, config, tokenizer) == ends


@pytest.mark.parametrize("content", ["{", "", "\u00ff\u00fe", "[]", "null"])
def test_a_generation_config_that_is_none_loses_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str
) -> None:
    with caplog.at_level(logging.WARNING):
        assert _ends(tmp_path, content, {"eos_token_id": [5, 7]}, 6) == {5, 6, 7}
    assert ("generation_config.json cannot be read" in caplog.text) == (content not in ("[]", "null"))


def test_an_id_outside_the_vocabulary_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert _ends(tmp_path, {"eos_token_id": [3, 100, -1]}) == {3}
    assert "eos_token_id 100 is outside the vocabulary of 100 tokens" in caplog.text
    assert _ends(tmp_path, {}, {"eos_token_id": 120, "vocab_size": 128}) == {120}, "a model may have more rows"


def test_a_folder_whose_config_alone_lists_them(tmp_path: Path) -> None:
    folder = save_llama(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": [7, 9]}))
    (folder / "generation_config.json").write_text("{ not JSON")
    codec = TextCodec.open(folder, "tiny", 128)
    assert codec.end_ids == {7, 9, codec.tokenizer.eos_token_id}
