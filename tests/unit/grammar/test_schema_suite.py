"""The JSON Schema test suite: no document that it calls invalid passes.

It is at github.com/json-schema-org/JSON-Schema-Test-Suite; `JSON_SCHEMA_TEST_SUITE` names its folder. Without, it is
skipped.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from osd.grammar.compiler import GrammarCompiler
from osd.records.asked.constraint import ConstraintSpec
from osd.records.errors import ConstraintRefusedError
from osd.text.codec import TextCodec
from tests.kit.tokenizer_kit import tokenizer_of

_SUITE = Path(os.environ.get("JSON_SCHEMA_TEST_SUITE", "/nowhere")) / "tests" / "draft2020-12"


@pytest.fixture(scope="module")
def codec() -> TextCodec:
    return TextCodec(tokenizer_of("byte-level"), model_id="m", context_tokens=64)


def _passes(compiler: GrammarCompiler, codec: TextCodec, spec: ConstraintSpec, document: Any) -> bool:
    """Whether the grammar allows the document, byte by byte, and then its end."""
    by_bytes = {codec.token_bytes(token): token for token in range(codec.vocab_tokens)}
    end = codec.tokenizer.eos_token_id
    tokens = [by_bytes[bytes([byte])] for byte in json.dumps(document, ensure_ascii=False).encode()] + [end]
    masks = compiler.compile(spec).allowed(tokens)
    return all(mask[token >> 5] >> (token & 31) & 1 for mask, token in zip(masks, tokens, strict=False))


@pytest.mark.skipif(not _SUITE.is_dir(), reason="JSON_SCHEMA_TEST_SUITE names no folder")
def test_invalid_documents_do_not_pass(codec: TextCodec) -> None:
    compiler = GrammarCompiler(codec, {codec.tokenizer.eos_token_id})
    wrong, counts = [], Counter[str]()
    for file in sorted(_SUITE.glob("*.json")):
        for group in json.loads(file.read_text(encoding="utf-8")):
            spec = ConstraintSpec(kind="json_schema", text=json.dumps(group["schema"]))
            try:
                compiler.compile(spec)
            except ConstraintRefusedError:
                counts["schemas refused"] += 1
                continue
            counts["schemas taken"] += 1
            for case in group["tests"]:
                passes = _passes(compiler, codec, spec, case["data"])
                counts[f"{'valid' if case['valid'] else 'invalid'}, {'passed' if passes else 'stopped'}"] += 1
                if passes and not case["valid"]:
                    wrong.append((file.name, group["description"], case["description"]))
    assert not wrong, (counts, wrong)
    # Valid documents may be stopped for the order of their properties.
    assert counts["invalid, stopped"] > 200 and counts["valid, passed"] > 200, counts
