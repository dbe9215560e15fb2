"""Answers under grammars: documents of sampled schemas are valid, cut ones say so, and an answer goes on elsewhere."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jsonschema
import numpy as np
import pytest
from numpy.typing import NDArray

from osd.drafters.suffix.lookup import SuffixLookup
from osd.drafters.suffix.pool import AnswerPool
from osd.engine.engine import Engine
from osd.grammar.row_grammar import RowGrammar
from osd.records.asked.constraint import ConstraintSpec
from osd.records.drafter_id import DrafterId
from osd.records.proposal import NO_OFFER, Offer, RowText
from osd.records.query import CONSTRAINT_FAILED, Request, SamplingParams
from osd.text.codec import TextCodec
from tests.kit.engine_kit import make_engine, make_target, model_drafter, perturbed, run, tiny_llama
from tests.kit.tokenizer_kit import tokenizer_of

_SCHEMAS: dict[str, Any] = {
    "object": {
        "type": "object",
        "properties": {"a": {"type": "boolean"}, "b": {"type": "integer", "minimum": -3, "maximum": 40}},
        "required": ["a", "b"],
        "additionalProperties": False,
    },
    "optional": {
        "type": "object",
        "properties": {"a": {"const": 1}, "b": {"type": "null"}, "c": {"enum": ["x", "\u00df\n", 2]}},
        "required": ["b"],
        "additionalProperties": False,
    },
    "list": {"type": "array", "items": {"enum": [True, None, "z"]}, "minItems": 2, "maxItems": 4},
    "tuple": {"type": "array", "prefixItems": [{"type": "boolean"}, {"const": "q"}], "items": False, "minItems": 2},
    "any of": {"anyOf": [{"type": "string", "maxLength": 3}, {"type": "integer", "exclusiveMaximum": 9, "minimum": 0}]},
    "all of": {"allOf": [{"type": "integer"}, {"minimum": 2}, {"maximum": 5}]},
    "one of": {"oneOf": [{"type": "boolean"}, {"const": "no"}]},
    "reference": {"$defs": {"p": {"enum": [1, 2]}}, "type": "array", "items": {"$ref": "#/$defs/p"}, "maxItems": 3},
    "recursive": {
        "type": "object",
        "properties": {"in": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
        "required": ["in"],
        "additionalProperties": False,
    },
    "pattern": {"type": "string", "pattern": "^[a-f]{2,4}-[0-9]$"},
    "format": {"type": "string", "format": "date"},
    "multiple": {"type": "integer", "multipleOf": 7, "minimum": 7, "maximum": 700},
    "pattern properties": {
        "type": "object",
        "patternProperties": {"^x[0-9]$": {"type": "boolean"}},
        "additionalProperties": False,
        "minProperties": 1,
        "maxProperties": 2,
    },
}
"""The parts of JSON Schema that documents of any length need, kept short here."""


def _spec(schema: Any) -> ConstraintSpec:
    return ConstraintSpec(kind="json_schema", text=json.dumps(schema))


@pytest.fixture(scope="module")
def codec() -> TextCodec:
    return TextCodec(tokenizer_of("byte-level"), model_id="tiny", context_tokens=64, vocab_tokens=413)


@pytest.fixture(scope="module")
def engine(codec: TextCodec) -> Engine:
    model = tiny_llama(3, vocab_tokens=413)
    target = make_target(model, eos_ids=[codec.tokenizer.eos_token_id], num_slots=8)
    return make_engine(target, model_drafter(perturbed(model, 0.05), target), codec=codec)


def _request(request_id: str, constraint: ConstraintSpec, *, length: int = 3, **params: Any) -> Request:
    sampling = SamplingParams(**{"max_tokens": 60, **params})
    return Request(
        request_id=request_id,
        prompt_ids=(7, 8, 9),
        params=sampling,
        constraint=constraint,
        speculation_length=length,
    )


def test_sampled_documents_are_valid(engine: Engine) -> None:
    accepted_before = engine.counters.values["accepted_total"]
    requests = [
        _request(f"{name}/{seed}", _spec(schema), length=seed % 4, seed=seed)
        for name, schema in _SCHEMAS.items()
        for seed in range(8)
    ]
    answers = run(engine, requests)
    finished = dict.fromkeys(_SCHEMAS, 0)
    for request_id, answer in answers.items():
        name = request_id.partition("/")[0]
        assert answer.finish_reason in ("stop", "length"), answer.error
        if answer.finish_reason == "stop":
            finished[name] += 1
            checker = jsonschema.Draft202012Validator(_SCHEMAS[name], format_checker=jsonschema.FormatChecker())
            checker.validate(json.loads(answer.text))
    assert min(finished.values()) > 0, finished
    assert engine.counters.values["accepted_total"] > accepted_before


def test_greedy_answers_are_the_same_with_speculation(engine: Engine) -> None:
    for name, schema in _SCHEMAS.items():
        pair = [_request(f"{name}/{length}", _spec(schema), length=length, temperature=0.0) for length in (0, 4)]
        answers = run(engine, pair)
        assert answers[f"{name}/0"].ids == answers[f"{name}/4"].ids


def _figures(engine: Engine, name: str, **sampling: Any) -> tuple[dict[str, list[int]], dict[str, float]]:
    """The answers to all schemas, and what they add to the engine's counters."""
    before = dict(engine.counters.values)
    requests = [_request(f"{key}/{name}", _spec(schema), length=4, **sampling) for key, schema in _SCHEMAS.items()]
    answers = {key.partition("/")[0]: answer.ids for key, answer in run(engine, requests).items()}
    names = ("proposed_total", "accepted_total", "committed_total")
    return answers, {one: engine.counters.values[one] - before[one] for one in names}


@pytest.mark.parametrize("sampling", [{"temperature": 0.0}, {"seed": 5}])
def test_drafters_know_what_a_grammar_forbids(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, sampling: dict[str, Any]
) -> None:
    """The first forbidden token is drawn again, and those after it are left out: fewer proposed, more accepted."""
    answers, found = _figures(engine, "found", **sampling)
    monkeypatch.setattr("osd.engine.round.drawn_again", lambda proposal, *_: proposal)
    _, cut = _figures(engine, "cut", **sampling)
    monkeypatch.setattr("osd.engine.round.cut_to_constraints", lambda proposal, *_: proposal)
    others, whole = _figures(engine, "whole", **sampling)
    assert cut["proposed_total"] < 0.8 * whole["proposed_total"]
    assert found["proposed_total"] < 0.8 * whole["proposed_total"]
    assert found["accepted_total"] > 1.5 * max(cut["accepted_total"], whole["accepted_total"]) > 0
    if not sampling.get("seed"):
        assert answers == others


def test_a_lookup_offers_nothing_that_a_grammar_forbids(codec: TextCodec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RowGrammar, "expected", lambda row: ())
    model = tiny_llama(3, vocab_tokens=413)
    target = make_target(model, eos_ids=[codec.tokenizer.eos_token_id], num_slots=2)
    engine = make_engine(target, codec=codec, lookup=SuffixLookup(AnswerPool(1 << 16), 2))
    spec = ConstraintSpec(kind="regex", text="(abc){8}")
    # What followed "abc" in the prompt is forbidden in the answer, where it was "X"; else it is what comes next.
    for text, offered in (("abcX", False), ("abcabcabcabc", True)):
        ids = codec.encode_text(text * 3 + "abc")
        request = Request(request_id=text, prompt_ids=ids, params=SamplingParams(seed=1), constraint=spec)
        before = dict(engine.counters.values)
        [answer] = run(engine, [request]).values()
        assert answer.text == "abc" * 8
        proposed, accepted = (
            engine.counters.values[name] - before[name] for name in ("proposed_total", "accepted_total")
        )
        assert proposed == accepted and (proposed > 0 or not offered)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_the_only_text_that_a_grammar_allows_is_offered(codec: TextCodec, temperature: float) -> None:
    """To a model that divides texts into tokens as the tokenizer does, which a bias brings a random one to."""
    model = tiny_llama(3, vocab_tokens=413)
    target = make_target(model, eos_ids=[codec.tokenizer.eos_token_id], num_slots=2)
    engine = make_engine(target, codec=codec, lookup=_FindsNothing(), fixed_length=None)
    text = "the days then a cold day"
    ids = codec.encode_text(text, add_special_tokens=False)
    bias = tuple((token, 60.0) for token in sorted(set(ids)))
    params = SamplingParams(temperature=temperature, seed=1, logit_bias=bias)
    spec = ConstraintSpec(kind="regex", text=f"[0-9]{{2}}{text}[0-9]{{2}}")
    [answer] = run(engine, [Request(request_id="r", prompt_ids=(7, 8), params=params, constraint=spec)]).values()
    assert re.fullmatch(spec.text, answer.text) and answer.stats is not None
    # A word that was begun may be divided in more ways than one.
    assert answer.stats.accepted >= len(ids) - 2 and answer.stats.proposed <= answer.stats.accepted + 2


def test_a_document_that_is_cut_off_says_length(engine: Engine) -> None:
    spec = ConstraintSpec(kind="regex", text="[a-z]{40}")
    answer = run(engine, [_request("cut", spec, max_tokens=5, seed=1)])["cut"]
    assert answer.finish_reason == "length"
    assert re.fullmatch("[a-z]+", answer.text)
    assert len(answer.ids) == 5


def test_an_answer_goes_on_in_another_engine(engine: Engine, codec: TextCodec) -> None:
    """A resumed request travels between processes as a pickle, and replays its tokens into the grammar."""
    spec = ConstraintSpec(kind="regex", text="[a-c]{5}-[d-f]{5}!")
    first = run(engine, [_request("first", spec, seed=4)])["first"]
    assert re.fullmatch(spec.text, first.text)
    for num in range(1, len(first.ids)):
        had = codec.decode(first.ids[:num])
        request = replace(
            _request(f"again {num}", spec, seed=5), resume_ids=tuple(first.ids[:num]), resume_chars=len(had)
        )
        rest = run(engine, [pickle.loads(pickle.dumps(request))])[f"again {num}"]
        assert re.fullmatch(spec.text, had + rest.text), (had, rest.text)


class _FindsNothing:
    """A lookup without any texts."""

    id = DrafterId("suffix", 0)

    def offers(self, rows: Sequence[RowText], max_tokens: int) -> list[Offer]:
        return [NO_OFFER] * len(rows)

    def reset_row(self, row: int) -> None: ...

    def swap_rows(self, row: int, other: int) -> None: ...


class _BreaksDown:
    """A constraint that fails at its third look."""

    def __init__(self) -> None:
        self.error: str | None = None
        self._num_looks = 0

    def allowed(self, proposed: Sequence[int]) -> NDArray[np.uint32]:
        self._num_looks += 1
        if self._num_looks == 3:
            self.error = "too many states"
        return np.full((len(proposed) + 1, 13), 0xFFFFFFFF, np.uint32)

    def advance(self, tokens: Sequence[int]) -> None: ...

    def expected(self) -> Sequence[int]:
        return ()


def test_a_grammar_that_fails_ends_its_own_query(engine: Engine) -> None:
    engine.submit(replace(_request("broken", _spec(True)), constraint=None), _BreaksDown())
    sound = _request("sound", ConstraintSpec(kind="regex", text="[a-c]{9}"), seed=2)
    answers = run(engine, [sound])
    assert answers["broken"].finish_reason == "error"
    assert answers["broken"].error == f"{CONSTRAINT_FAILED}: too many states"
    assert re.fullmatch("[a-c]{9}", answers["sound"].text)
