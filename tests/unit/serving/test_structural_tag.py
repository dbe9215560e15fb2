"""Structural tags: which texts they admit, in both notations, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from osd.grammar.compiler import GrammarCompiler
from osd.records.asked.constraint import ConstraintSpec
from osd.text.codec import TextCodec
from serving.wire.chat_request import ChatRequest
from tests.kit.http_client import CHAT, http_client
from tests.kit.tokenizer_kit import tokenizer_of

_INTEGER = {"type": "json_schema", "json_schema": {"type": "integer", "minimum": 0, "maximum": 99}}
_TEXT = {"type": "any_text"}


def _tag(begin: str, content: dict[str, Any], end: str) -> dict[str, Any]:
    return {"type": "tag", "begin": begin, "content": content, "end": end}


def _triggered(**options: Any) -> dict[str, Any]:
    tags = [_tag("<f=a>", _INTEGER, "</f>"), _tag("<f=b>", _TEXT, "</f>"), _tag("[", _INTEGER, "]")]
    return {"type": "triggered_tags", "triggers": ["<f=", "["], "tags": tags, **options}


def _separated(**options: Any) -> dict[str, Any]:
    return {"type": "tags_with_separator", "tags": [_tag("[", _INTEGER, "]")], "separator": "; ", **options}


_FORMATS: dict[str, tuple[dict[str, Any], list[str], list[str]]] = {
    "const": ({"type": "const_string", "value": 'a/"b"'}, ['a/"b"'], ["a", ""]),
    "regex": ({"type": "regex", "pattern": "[a-c]/{2}"}, ["b//"], ["b/", "d//"]),
    "tag": (_tag("<n>", _INTEGER, "</n>"), ["<n>42</n>"], ["<n>420</n>", "42", "<n>42</n>x"]),
    "text in a tag": (_tag("<n>", _TEXT, "</n>"), ["<n></n>", "<n>a <b> </n>"], ["<n>", "<n></n> "]),
    "sequence": (
        {"type": "sequence", "elements": [{"type": "const_string", "value": "n: "}, _INTEGER, _TEXT]},
        ["n: 7", "n: 7 and more"],
        ["n: x", "7"],
    ),
    "or": ({"type": "or", "elements": [{"type": "const_string", "value": "no"}, _INTEGER]}, ["no", "3"], ["yes", "n"]),
    "triggered": (
        _triggered(),
        ["", "free text", "x <f=a>7</f> y [3] z", "<f=b>any</f>"],
        ["<f=c>", "<f=a>x</f>", "a [x]"],
    ),
    "at least one": (_triggered(at_least_one=True), ["x [3] z", "[3][4]"], ["", "free text"]),
    "the first": (_triggered(stop_after_first=True), ["", "x", "x [3]"], ["x [3] z", "[3][4]"]),
    "only the first": (_triggered(stop_after_first=True, at_least_one=True), ["x [3]"], ["", "x", "[3] x"]),
    "separated": (_separated(), ["", "[1]", "[1]; [2]; [3]"], ["[1][2]", "[1]; "]),
    "one of the separated": (_separated(at_least_one=True, stop_after_first=True), ["[1]"], ["", "[1]; [2]"]),
}


def _spec(tag: dict[str, Any], field: str = "response_format") -> ConstraintSpec:
    value: Any = {"structural_tag": json.dumps(tag)} if field == "structured_outputs" else tag
    [spec] = ChatRequest.model_validate({**CHAT, field: value}).constraint_specs()
    return spec


@pytest.fixture(scope="module")
def codec() -> TextCodec:
    return TextCodec(tokenizer_of("byte-level"), model_id="tiny", context_tokens=64, vocab_tokens=413)


@pytest.fixture(scope="module")
def compiler(codec: TextCodec) -> GrammarCompiler:
    return GrammarCompiler(codec, {codec.tokenizer.eos_token_id})


def _admits(compiler: GrammarCompiler, codec: TextCodec, spec: ConstraintSpec, text: str) -> bool:
    """Whether the text, in single bytes, may be the whole answer."""
    row = compiler.compile(spec)
    ids = [next(t for t in range(413) if codec.token_bytes(t) == bytes([byte])) for byte in text.encode()]
    for token in [*ids, codec.tokenizer.eos_token_id]:
        bits_W = row.allowed(())[0]
        if not bits_W[token >> 5] >> np.uint32(token & 31) & np.uint32(1):
            return False
        row.advance([token])
    return True


@pytest.mark.parametrize("name", _FORMATS)
def test_texts_that_fit_are_admitted_and_no_others(compiler: GrammarCompiler, codec: TextCodec, name: str) -> None:
    format_, fitting, others = _FORMATS[name]
    spec = _spec({"type": "structural_tag", "format": format_})
    for text in fitting:
        assert _admits(compiler, codec, spec, text), text
    for text in others:
        assert not _admits(compiler, codec, spec, text), text


def test_the_older_notation_says_the_same() -> None:
    structures = [{"begin": "<f=a>", "schema": _INTEGER["json_schema"], "end": "</f>"}]
    older = {"type": "structural_tag", "structures": structures, "triggers": ["<f="]}
    newer = {"type": "triggered_tags", "triggers": ["<f="], "tags": [_tag("<f=a>", _INTEGER, "</f>")]}
    found = _spec(older)
    assert found.text == _spec({"type": "structural_tag", "format": newer}).text
    for field in ("structural_tag", "structured_outputs"):
        assert _spec(older, field).text == found.text


@pytest.mark.parametrize(
    ("tag", "why"),
    [
        ({}, "give it, or structures and triggers"),
        ({"format": {"type": "sequence", "elements": [_TEXT, _INTEGER]}}, "any text can only be a tag's content"),
        ({"format": _tag("<", {"type": "sequence", "elements": [_TEXT]}, ">")}, "any text can only be a tag's content"),
        ({"format": {**_triggered(), "triggers": ["<f="]}}, "no trigger begins the tag '\\['"),
        ({"format": {"type": "grammar", "grammar": "root ::= x"}}, "type"),
        ({"format": _INTEGER, "triggers": ["x"]}, "either it, or structures and triggers"),
    ],
)
def test_what_no_grammar_can_be_made_of_is_refused(tag: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        _spec({"type": "structural_tag", **tag})


async def test_bad_input_names_the_field() -> None:
    deep: dict[str, Any] = _INTEGER
    for _ in range(80):
        deep = {"type": "sequence", "elements": [deep]}
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"structural_tag": "{"}, "structural_tag"),
        ({"structural_tag": "5"}, "structural_tag"),
        ({"structured_outputs": {"structural_tag": "[1]"}}, "structured_outputs.structural_tag"),
        ({"response_format": {"type": "structural_tag", "format": deep}}, "response_format.format"),
        ({"response_format": {"type": "structural_tag", "format": _tag("<", _bad_schema(), ">")}}, "response_format"),
    ]
    async with http_client() as client:
        for fields, param in wrong:
            answer = await client.post("/v1/chat/completions", json={**CHAT, **fields})
            assert answer.status_code == 400, (fields, answer.text)
            assert answer.json()["error"]["param"] == param


def _bad_schema() -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"type": "array", "uniqueItems": True}}
