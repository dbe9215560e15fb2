"""Answers split into reasoning, content and tool calls: the same however the text arrives."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osd.text.chat_template import CallFormat
from serving.parsing.pieces import AnswerParser, Call, CallArguments, CallStart, Parts, parts_of
from serving.parsing.reasoning import ReasoningFirst
from serving.parsing.tool_calls import call_parser

NAMES = ("get_weather", "add")
WEATHER = '{"name": "get_weather", "arguments": {"city": "Paris", "note": "a \\"quoted\\" } brace"}}'
ADD = '{"arguments": {"a": [1, {"b": "]"}], "c": null}, "name": "add"}'
WEATHER_CALL = Call("get_weather", '{"city": "Paris", "note": "a \\"quoted\\" } brace"}')
ADD_CALL = Call("add", '{"a": [1, {"b": "]"}], "c": null}')
LLAMA = '{"type": "function", "name": "get_weather", "parameters": {"city": "Oslo"}}'
LLAMA_CALL = Call("get_weather", '{"city": "Oslo"}')

CASES: list[tuple[CallFormat, str, Parts]] = [
    ("hermes", f"<tool_call>\n{WEATHER}\n</tool_call>", Parts(calls=[WEATHER_CALL])),
    (
        "hermes",
        f"Let me see. \n<tool_call>\n{WEATHER}\n</tool_call>\n<tool_call>{ADD}</tool_call>\n",
        Parts("Let me see.", calls=[WEATHER_CALL, ADD_CALL]),
    ),
    ("hermes", f"<tool_call>{WEATHER}</tool_call>\n Done: {ADD}", Parts(f"Done: {ADD}", calls=[WEATHER_CALL])),
    ("hermes", f"<tool_call>{WEATHER} <tool_call>{ADD}", Parts(calls=[WEATHER_CALL, ADD_CALL])),
    ("hermes", "a < b, <tool_cal and <tool_call", Parts("a < b, <tool_cal and <tool_call")),
    ("hermes", '<tool_call>{"name": "rm", "arguments": {}}</tool_call>', None),  # type: ignore[list-item]
    ("hermes", "<tool_call>nonsense</tool_call> x", None),  # type: ignore[list-item]
    ("hermes", '<tool_call>["name"]</tool_call>', None),  # type: ignore[list-item]
    ("hermes", '<tool_call>{"name": "add"}</tool_call>', Parts(calls=[Call("add", "{}")])),
    ("hermes", '<tool_call>{"name": "add", "arguments": null}', Parts(calls=[Call("add", "{}")])),
    ("hermes", '<tool_call>{"name": "add", "arguments": "{\\"a\\": 1}"}', Parts(calls=[Call("add", '{"a": 1}')])),
    ("hermes", '<tool_call>{"name": "add", "arguments": {"a": [1, 2', Parts(calls=[Call("add", '{"a": [1, 2')])),
    ("hermes", '<tool_call>{"name": "ad', Parts('<tool_call>{"name": "ad')),
    ("hermes", "  plain\n", Parts("  plain\n")),
    ("hermes", "", Parts()),
    ("llama3_json", LLAMA, Parts(calls=[LLAMA_CALL])),
    ("llama3_json", f"<|python_tag|>{LLAMA}; {LLAMA}", Parts(calls=[LLAMA_CALL, LLAMA_CALL])),
    ("llama3_json", '{"a": 1}', Parts('{"a": 1}')),
    ("llama3_json", f"Use {LLAMA}", Parts(f"Use {LLAMA}")),
    ("llama3_json", f"{LLAMA}\nand so on", Parts("and so on", calls=[LLAMA_CALL])),
    ("llama3_json", "<|python_tag|>print(1)", Parts("<|python_tag|>print(1)")),
    ("mistral", f"[TOOL_CALLS][{WEATHER}, {ADD}]", Parts(calls=[WEATHER_CALL, ADD_CALL])),
    ("mistral", f" [ {WEATHER} ]", Parts(calls=[WEATHER_CALL])),
    ("mistral", "[1, 2]", Parts("[1, 2]")),
    ("mistral", "[TOOL", Parts("[TOOL")),
    ("mistral", WEATHER, Parts(WEATHER)),
]


def expected(text: str, parts: Parts | None) -> Parts:
    """None: all of it is content."""
    return Parts(text) if parts is None else parts


def merged(parser: AnswerParser, pieces: list[str]) -> Parts:
    parts = Parts()
    for piece in pieces:
        parts.add(parser.read(piece))
    parts.add(parser.end())
    return parts


@pytest.mark.parametrize(("call_format", "text", "parts"), CASES, ids=range(len(CASES)))
def test_an_answer_in_one_two_or_many_pieces(call_format: CallFormat, text: str, parts: Parts | None) -> None:
    wanted = expected(text, parts)
    assert parts_of(call_parser(call_format, NAMES), text) == wanted
    assert merged(call_parser(call_format, NAMES), list(text)) == wanted
    for at in range(len(text)):
        assert merged(call_parser(call_format, NAMES), [text[:at], text[at:]]) == wanted, at
        thought = f"<think>\nHm. <b\n</think>\n\n{text}"
        parser = ReasoningFirst(call_parser(call_format, NAMES), is_open=False)
        told = merged(parser, [thought[: at + 9], thought[at + 9 :]])
        assert told.reasoning == "Hm. <b" and told.calls == wanted.calls
        assert told.content.strip() == wanted.content.strip()


@given(
    call_format=st.sampled_from(["hermes", "llama3_json", "mistral"]),
    arguments=st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
        max_leaves=8,
    ).map(lambda value: {"value": value}),
    ascii_only=st.booleans(),
    cuts=st.lists(st.integers(0, 300), max_size=6),
)
@settings(max_examples=150, deadline=None)
def test_any_arguments_arrive_whole_however_they_are_cut(
    call_format: CallFormat, arguments: dict[str, Any], ascii_only: bool, cuts: list[int]
) -> None:
    key = "parameters" if call_format == "llama3_json" else "arguments"
    call = json.dumps({"name": "add", key: arguments}, ensure_ascii=ascii_only)
    text = {"hermes": f"<tool_call>{call}</tool_call>", "llama3_json": call, "mistral": f"[TOOL_CALLS][{call}]"}
    whole = text[call_format]
    edges = sorted({0, len(whole), *(min(cut, len(whole)) for cut in cuts)})
    parts = merged(call_parser(call_format, NAMES), [whole[start:end] for start, end in pairwise(edges)])
    assert parts.content == "" and [one.name for one in parts.calls] == ["add"]
    assert json.loads(parts.calls[0].arguments) == arguments


@given(
    call_format=st.sampled_from(["hermes", "llama3_json", "mistral"]),
    tokens=st.lists(
        st.sampled_from(
            ["<tool_call>", "</tool_call>", "<tool", "[TOOL_CALLS]", "[", "]", "{", "}", '"', "name", ": ", ", ", "add"]
            + ["\\", "\n", " ", "x", "<think>", "</think>", '{"name": "add", "arguments": {', "<|python_tag|>", ";"]
        ),
        max_size=12,
    ),
    is_open=st.booleans(),
)
@settings(max_examples=400, deadline=None)
def test_whatever_a_model_writes_cuts_do_not_matter(call_format: CallFormat, tokens: list[str], is_open: bool) -> None:
    def parser() -> AnswerParser:
        return ReasoningFirst(call_parser(call_format, NAMES), is_open=is_open)

    whole = "".join(tokens)
    wanted = parts_of(parser(), whole)
    assert merged(parser(), tokens) == wanted
    assert merged(parser(), list(whole)) == wanted


def test_arguments_are_streamed_as_they_are_written() -> None:
    parser = call_parser("hermes", NAMES)
    assert parser.read('Hi<tool_call>{"name": "ad') == parser_content("Hi")
    assert parser.read('d", "argu') == [CallStart(0, "add")]
    assert parser.read('ments": {"a": ') == [CallArguments(0, '{"a": ')]
    assert parser.read("12") == [CallArguments(0, "12")]
    assert parser.read("}}</tool_") == [CallArguments(0, "}")]
    assert parser.read("call>") == [] and parser.end() == []


def parser_content(text: str) -> list[Any]:
    return call_parser("hermes", NAMES).read(text)


@pytest.mark.parametrize("call_format", ["hermes", "llama3_json", "mistral"])
def test_further_calls_than_allowed_are_left_out(call_format: CallFormat) -> None:
    text = {
        "hermes": f"<tool_call>{WEATHER}</tool_call><tool_call>{ADD}</tool_call>",
        "llama3_json": f"{WEATHER}; {ADD}",
        "mistral": f"[{WEATHER}, {ADD}]",
    }[call_format]
    assert parts_of(call_parser(call_format, NAMES, max_calls=1), text) == Parts(calls=[WEATHER_CALL])


@pytest.mark.parametrize(
    ("text", "is_open", "parts"),
    [
        ("<think>a\nb</think>c", False, Parts("c", "a\nb")),
        ("\n<think>\n a \n</think>\n\n c ", False, Parts("c ", "a")),
        ("a</think> c", True, Parts("c", "a")),
        ("a </thin", True, Parts("", "a </thin")),
        ("a", True, Parts("", "a")),
        ("no <think>thoughts</think>", False, Parts("no <think>thoughts</think>")),
        ("<think></think>c", False, Parts("c")),
        ("<thi", False, Parts("<thi")),
    ],
)
def test_reasoning(text: str, is_open: bool, parts: Parts) -> None:
    for pieces in ([text], list(text)):
        parser = ReasoningFirst(call_parser("hermes", NAMES), is_open=is_open)
        assert merged(parser, pieces) == parts


def test_a_long_call_takes_time_in_proportion() -> None:
    """Letters are looked at once each, in every format; a second look at each would take minutes here."""
    arguments = json.dumps({"text": "x" * 400_000})
    for text in (f'{{"name": "add", "parameters": {arguments}}}', f'{{"parameters": {arguments}, "name": "add"}}'):
        parser = call_parser("llama3_json", NAMES)
        parts = merged(parser, [text[at : at + 4] for at in range(0, len(text), 4)])
        assert len(parts.calls[0].arguments) == len(arguments)
