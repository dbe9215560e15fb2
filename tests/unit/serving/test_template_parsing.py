"""Answers read by a tokenizer's response template: the same however the text arrives, and nothing of them is lost."""

from __future__ import annotations

import logging
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("transformers.utils.chat_parsing")

from serving.parsing.pieces import Call, Parts, parts_of
from serving.parsing.template import TemplateParser

NAMES = ("get_weather", "add")
_FUNCTION = {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}}
MARKED: dict[str, Any] = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|turn>model\n",
    "fields": {
        "thinking": {"open": "<|channel>thought\n", "close": "<channel|>", "content": "text"},
        "tool_calls": {
            "open_pattern": r"<\|tool_call>call:(?P<name>\w+)",
            "close": "<tool_call|>",
            "repeats": True,
            "content": "json",
            "content_args": {"unquoted_keys": True, "string_delims": [['<|"|>', '<|"|>']]},
            "transform": _FUNCTION,
        },
        "content": {"close": ["<turn|>", "<eos>"], "content": "text", "optional": False},
    },
}
"""Marks that are special tokens, and arguments that are nearly JSON, as Gemma 4 writes them."""
XML: dict[str, Any] = {
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "reasoning_content": {"open": "<think>", "close": "</think>", "content": "text"},
        "tool_calls": {
            "open_pattern": r"\s*<tool_call>\s*<function=(?P<name>[^>\n]+)>",
            "close_pattern": r"</function>\s*</tool_call>",
            "repeats": True,
            "content": "xml-inline",
            "content_args": {"tag_pattern": r"<parameter=(?P<key>[^>\n]+)>\s*(?P<value>.*?)\s*</parameter>"},
            "transform": _FUNCTION,
        },
        "content": {"close_pattern": r"\s*(?:<\|im_end\|>)", "content": "text"},
    },
}
"""Arguments as elements, as Qwen 3.5 writes them."""
TOOLS = [
    {
        "type": "function",
        "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}},
    }
]
PROMPTS = {id(MARKED): "<|turn>user\nhi<turn|><|turn>model\n", id(XML): "<|im_start|>assistant\n"}
OSLO = '<|tool_call>call:get_weather{city:<|"|>Os"lo<|"|>,days:2}<tool_call|>'
OSLO_CALL = Call("get_weather", '{"city": "Os\\"lo", "days": 2}')
_ARGUMENTS = "<parameter=a>\n7\n</parameter>\n<parameter=b>\n7\n</parameter>\n"
ADD = f"<tool_call>\n<function=add>\n{_ARGUMENTS}</function>\n</tool_call>"
ADD_CALL = Call("add", '{"a": 7, "b": "7"}')
CASES: list[tuple[dict[str, Any], str, Parts]] = [
    (MARKED, "Plain text.\n", Parts("Plain text.\n")),
    (MARKED, OSLO, Parts(calls=[OSLO_CALL])),
    (MARKED, f"Let me see.\n{OSLO}{OSLO}", Parts("Let me see.", calls=[OSLO_CALL, OSLO_CALL])),
    (MARKED, f"<|channel>thought\nHm.\n<channel|>\nYes.{OSLO}<turn|>", Parts("Yes.", "Hm.", [OSLO_CALL])),
    (MARKED, "<|channel>thought\n\n Hm", Parts("", "Hm")),
    (MARKED, "<|tool_call>call:rm{a:1}<tool_call|> done", Parts("{a:1} done")),
    (MARKED, "I <|tool_call>call:add{a:<tool_call|> go on", Parts("I {a: go on")),
    (MARKED, f"I <|tool_call>call:add{{a:<tool_call|>{OSLO}", Parts("I {a:", calls=[OSLO_CALL])),
    (MARKED, '<|tool_call>call:add{a:[1, 2, "', Parts('{a:[1, 2, "')),
    (XML, ADD, Parts(calls=[ADD_CALL])),
    (XML, f"Sure.\n{ADD}\n{ADD}\n", Parts("Sure.", calls=[ADD_CALL, ADD_CALL])),
    (XML, f"<think>\nHm. <b\n</think>\n\nSure.{ADD}", Parts("Sure.", "Hm. <b", [ADD_CALL])),
    (XML, "a < b, <tool_cal", Parts("a < b, <tool_cal")),
]


def parser(template: dict[str, Any], prompt: str | None = None, max_calls: int | None = None) -> TemplateParser:
    return TemplateParser(template, PROMPTS[id(template)] if prompt is None else prompt, NAMES, max_calls, TOOLS)


def merged(template: dict[str, Any], pieces: list[str], prompt: str | None = None) -> Parts:
    reading, parts = parser(template, prompt), Parts()
    for piece in pieces:
        parts.add(reading.read(piece))
    parts.add(reading.end())
    return parts


@pytest.mark.parametrize(("template", "text", "parts"), CASES, ids=range(len(CASES)))
def test_an_answer_in_one_two_or_many_pieces(template: dict[str, Any], text: str, parts: Parts) -> None:
    assert parts_of(parser(template), text) == parts
    assert merged(template, list(text)) == parts
    for at in range(len(text)):
        assert merged(template, [text[:at], text[at:]]) == parts, at


@given(
    template=st.sampled_from([MARKED, XML]),
    tokens=st.lists(
        st.sampled_from(
            ["<|tool_call>", "call:add", "<tool_call|>", "{a:1}", "{", "}", '<|"|>', "<turn|>", "<|channel>thought\n"]
            + ["<channel|>", "<think>", "</think>", "<tool_call>", "<function=add>", "<parameter=a>", "1", "\n", " "]
            + ["</parameter>", "</function>", "</tool_call>", "x", "<", "<|im_end|>", ADD, OSLO]
        ),
        max_size=10,
    ),
    cuts=st.lists(st.integers(0, 200), max_size=5),
)
@settings(max_examples=200, deadline=None)
def test_whatever_a_model_writes_cuts_do_not_matter(
    template: dict[str, Any], tokens: list[str], cuts: list[int]
) -> None:
    text = "".join(tokens)
    edges = sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})
    whole = parts_of(parser(template), text)
    assert (
        merged(template, [text[start:end] for start, end in pairwise(edges)]) == whole == merged(template, list(text))
    )


def test_an_answer_that_begins_within_its_reasoning() -> None:
    assert merged(XML, ["hm", "\n</thi", "nk>\n\nYes."], "<|im_start|>assistant\n<think>\n") == Parts("Yes.", "hm")
    # Without the anchor, nothing of the prompt belongs to the answer.
    assert merged(XML, ["hm"], "of another <think>") == Parts("hm")


def test_further_calls_than_allowed_are_left_out() -> None:
    assert parts_of(parser(MARKED, max_calls=1), OSLO + OSLO) == Parts(calls=[OSLO_CALL])


def test_an_answer_that_does_not_fit_is_not_quoted_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Transformers' message names the keys that the model wrote."""
    call = {"open": "<call>", "close": "</call>", "content": "json", "transform": {"name": "{content.name}"}}
    template = {**MARKED, "fields": {**MARKED["fields"], "tool_calls": call}}
    text = '<call>{"the key to my heart": 1}</call>'
    with caplog.at_level(logging.DEBUG, logger="serving.parsing.template"):
        assert parts_of(parser(template, ""), text).content == '{"the key to my heart": 1}'
    assert "does not fit its response template" in caplog.text
    assert "heart" not in caplog.text
