"""Grammars, compared with lists of all texts that they admit, and what is refused."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from osd.grammar.compiler import GrammarCompiler
from osd.grammar.row_grammar import RowGrammar
from osd.grammar.source import MAX_CHARS, check
from osd.records.asked.constraint import ConstraintKind, ConstraintSpec, ReasoningFirst
from osd.records.errors import ConstraintRefusedError
from osd.text.codec import TextCodec
from tests.kit.engine_kit import char_codec
from tests.kit.tokenizer_kit import tokenizer_of

_TEXTS = ["the day", "the days", "then", "a cold day", "Straße", "10 < 20", "say <|im_end|>"]
_AS_GRAMMARS: list[tuple[ConstraintKind, str]] = [
    ("regex", "the days?|then|a cold day|Straße|10 < 20|say <\\|im_end\\|>"),
    ("lark", 'start: "the day" "s"? | "then" | "a cold day" | "Straße" | "10 < 20" | "say <|im_end|>"'),
]


@pytest.fixture(scope="module", params=["byte-level", "byte fallback"])
def codec(request: pytest.FixtureRequest) -> TextCodec:
    return TextCodec(tokenizer_of(request.param), model_id="tiny", context_tokens=64, vocab_tokens=413)


@pytest.fixture(scope="module")
def end_id(codec: TextCodec) -> int:
    return int(codec.tokenizer.eos_token_id)


@pytest.fixture(scope="module")
def compiler(codec: TextCodec, end_id: int) -> GrammarCompiler:
    return GrammarCompiler(codec, {end_id})


def _tokens(bits_W: NDArray[np.uint32]) -> set[int]:
    return set(np.flatnonzero(np.unpackbits(bits_W.view(np.uint8), bitorder="little")).tolist())


def _expected(codec: TextCodec, end_id: int, said: bytes) -> set[int]:
    """Every token that leads on to one of the texts, and the end where one is complete."""
    texts = [text.encode() for text in _TEXTS]
    going_on = {
        token
        for token in range(codec.vocab_tokens)
        if (data := codec.token_bytes(token)) and any(text.startswith(said + data) for text in texts)
    }
    return going_on | ({end_id} if said in texts else set())


@pytest.mark.parametrize(("kind", "text"), _AS_GRAMMARS)
def test_a_mask_holds_the_tokens_that_lead_on(
    codec: TextCodec, end_id: int, compiler: GrammarCompiler, kind: ConstraintKind, text: str
) -> None:
    random = Random(5)
    finished = set()
    for _ in range(60):
        row, said = compiler.compile(ConstraintSpec(kind=kind, text=text)), b""
        while True:
            allowed = _tokens(row.allowed(())[0])
            assert allowed == _expected(codec, end_id, said), said
            token = random.choice(sorted(allowed))
            row.advance([token])
            if token == end_id:
                break
            said += codec.token_bytes(token)
        finished.add(said.decode())
    assert len(finished) > 3
    assert finished <= set(_TEXTS)


def test_proposed_tokens_are_followed_and_forgotten(codec: TextCodec, end_id: int, compiler: GrammarCompiler) -> None:
    spec = ConstraintSpec(kind="regex", text=_AS_GRAMMARS[0][1])
    row = compiler.compile(spec)
    proposed = [*codec.encode_text("the days", add_special_tokens=False), end_id]
    masks = row.allowed(proposed)
    assert len(masks) == len(proposed) + 1
    before = _tokens(masks[0])
    for mask, token in zip(masks, proposed, strict=False):
        assert _tokens(mask) == _tokens(row.allowed(())[0])
        row.advance([token])
    assert compiler.compile(spec).allowed(()).tolist() == masks[:1].tolist()
    assert before == _tokens(masks[0])


def test_after_a_forbidden_token_rows_allow_something_and_nothing_is_left_behind(
    codec: TextCodec, end_id: int, compiler: GrammarCompiler
) -> None:
    row = compiler.compile(ConstraintSpec(kind="regex", text="the days?"))
    first = _tokens(row.allowed(())[0])
    right, wrong = codec.encode_text("the", add_special_tokens=False), codec.encode_text("x", add_special_tokens=False)
    masks = row.allowed([*right, *wrong, *right])
    assert all(_tokens(mask) for mask in masks)
    assert _tokens(row.allowed(())[0]) == first
    assert row.error is None


def test_the_only_text_that_may_follow_is_expected(codec: TextCodec, end_id: int, compiler: GrammarCompiler) -> None:
    """Without its last token, which may go on with what follows; nothing where the text is open."""
    row = compiler.compile(ConstraintSpec(kind="regex", text="the day(s then|!)"))
    ids = codec.encode_text("the day", add_special_tokens=False)
    if b"".join(map(codec.token_bytes, ids)) != b"the day":  # a space comes before every text
        assert tuple(row.expected()) == ()
        return
    assert len(ids) > 1 and tuple(row.expected()) == ids[:-1]
    row.advance(ids)
    assert tuple(row.expected()) == ()
    mask_W = row.allowed(())[0]
    row.advance([next(token for token in _tokens(mask_W) if codec.token_bytes(token) == b"!")])
    assert tuple(row.expected()) == () and _tokens(row.allowed(())[0]) == {end_id}


def test_json_is_bounded_in_whitespace(codec: TextCodec, compiler: GrammarCompiler) -> None:
    row = compiler.compile(ConstraintSpec(kind="json_schema", text='{"type": "object"}'))
    blank = next(token for token in range(codec.vocab_tokens) if codec.token_bytes(token) == b"\n")
    brace = next(token for token in range(codec.vocab_tokens) if codec.token_bytes(token) == b"{")
    row.advance([brace, *[blank] * 32])
    assert blank not in _tokens(row.allowed(())[0])
    assert row.error is None


def test_a_grammar_is_compiled_once(compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ConstraintSpec(kind="regex", text="only once")
    one = compiler.compile(spec)
    monkeypatch.setattr(compiler, "_compile", None)
    other = compiler.compile(ConstraintSpec(kind="regex", text="only once", field="another"))
    one.advance(sorted(_tokens(one.allowed(())[0]))[:1])
    assert isinstance(other, RowGrammar)
    assert _tokens(other.allowed(())[0]) != _tokens(one.allowed(())[0])


_MANY: dict[str, Any] = {f"p{number}": {} for number in range(1001)}
_OPTIONAL: dict[str, Any] = {f"p{number}": {"type": "string"} for number in range(900)}
_TOO_MUCH = {"anyOf": [{"type": "object", "properties": {f"p{number}": {}}} for number in range(1800)]}


@pytest.mark.parametrize(
    ("kind", "text", "why"),
    [
        ("regex", "[", "unclosed character class"),
        ("regex", "(?=a)b", "look-around"),
        ("lark", "start: other", "unknown name"),
        ("lark", "begin: /a/", "start"),
        ("lark", 'start: a "x"\na[max_tokens=3]: /[a-z]+/', "rollback not supported"),
        ("json_schema", "{", "no JSON"),
        ("json_schema", "[" * 100_000, "nested too deeply"),
        ("json_schema", "[]", "expected a JSON Schema"),
        ("json_schema", "false", "some document satisfies"),
        ("json_schema", '{"type": "array", "uniqueItems": true}', "uniqueItems"),
        ("json_schema", '{"type": "string", "format": "nonsense"}', "Unknown format"),
        ("json_schema", '{"$ref": "#"}', "no text satisfies it"),
        ("json_schema", '{"$ref": "http://127.0.0.1:9/schema"}', "Default retriever"),
        ("json_schema", json.dumps({"properties": _MANY}), "1001 keys"),
        (
            "json_schema",
            json.dumps({"type": "object", "properties": _OPTIONAL}),
            "too many different things at one place",
        ),
        ("json_schema", json.dumps(_TOO_MUCH), "too big"),
        ("json_schema", '{"type": "integer", "multipleOf": 999983}', "multipleOf, 999983, is above"),
        ("json_schema", '{"allOf": [{"type": "integer", "multipleOf": 997}, {"multipleOf": 9.91}]}', "988027"),
        ("json_schema", json.dumps({"enum": ["x" * MAX_CHARS]}), "characters"),
    ],
)
def test_what_is_refused_names_the_field(compiler: GrammarCompiler, kind: ConstraintKind, text: str, why: str) -> None:
    with pytest.raises(ConstraintRefusedError, match=why) as caught:
        compiler.compile(ConstraintSpec(kind=kind, text=text, field="guided"))
    assert str(caught.value).startswith("'guided': ")
    assert caught.value.field == "guided"


@pytest.mark.parametrize(
    "regex", ["(a|a)*b", "((a{1,1000}){1,1000}){1,1000}", "(a?){300}a{300}", "a{20000}", ".*" * 40]
)
def test_regular_expressions_that_explode_elsewhere_do_not_here(compiler: GrammarCompiler, regex: str) -> None:
    row = compiler.compile(ConstraintSpec(kind="regex", text=regex))
    assert _tokens(row.allowed(())[0])


def test_a_recursive_schema_is_followed(codec: TextCodec, end_id: int, compiler: GrammarCompiler) -> None:
    schema = {"type": "object", "properties": {"in": {"$ref": "#"}}, "additionalProperties": False}
    row = compiler.compile(ConstraintSpec(kind="json_schema", text=json.dumps(schema)))
    by_bytes = {codec.token_bytes(token): token for token in range(codec.vocab_tokens)}
    row.advance([by_bytes[letter.encode()] for letter in '{"in":{"in":{}}}'])
    assert _tokens(row.allowed(())[0]) == {end_id}


def test_checking_without_a_tokenizer_says_the_same() -> None:
    check(ConstraintSpec(kind="regex", text="[a-z]+"))
    with pytest.raises(ConstraintRefusedError, match="unclosed character class"):
        check(ConstraintSpec(kind="regex", text="["))


@pytest.mark.parametrize(("codec", "ends", "why"), [(char_codec(), {1}, "no fixed bytes"), (None, (), "no token that")])
def test_models_that_cannot_be_constrained_say_so(codec: Any, ends: Any, why: str) -> None:
    compiler = GrammarCompiler(codec or TextCodec(tokenizer_of("byte-level"), model_id="m", context_tokens=9), ends)
    with pytest.raises(ConstraintRefusedError, match=why):
        compiler.compile(ConstraintSpec(kind="regex", text="a"))


@pytest.mark.parametrize(
    ("reasoning", "text", "is_whole"),
    [
        ("optional", "<think>a {1} </thin b</think>\n\n[1]", True),
        ("optional", "[1]", True),
        ("optional", "<think>[1]", False),
        ("open", "no </thin, but </think>[1]", True),
        ("open", "[1]", False),
        ("no", "[1]", True),
    ],
)
@pytest.mark.parametrize("kind", ["json_schema", "lark"])
def test_reasoning_comes_first(
    codec: TextCodec,
    end_id: int,
    compiler: GrammarCompiler,
    kind: ConstraintKind,
    reasoning: ReasoningFirst,
    text: str,
    is_whole: bool,
) -> None:
    answer = {"json_schema": '{"const": [1]}', "lark": 'start: "[1]"'}[kind]
    row = compiler.compile(ConstraintSpec(kind=kind, text=answer, reasoning=reasoning))
    by_bytes = {codec.token_bytes(token): token for token in range(codec.vocab_tokens)}
    ids = [by_bytes[letter.encode()] for letter in text]
    masks = row.allowed(ids)
    assert all(token in _tokens(mask) for token, mask in zip(ids, masks, strict=False))
    assert (end_id in _tokens(masks[-1])) is is_whole
