"""Grammars of tool calls, in each of the formats that `serving.parsing.tool_calls` reads.

Rules are in llguidance's variant of Lark's notation. A tool's arguments keep to its schema if it is strict or if the
model has to call, then without keywords that grammars do not know; otherwise they are any JSON object.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from osd.grammar.source import json_rule
from osd.records.asked.constraint import ConstraintSpec
from osd.text.chat_template import CallFormat
from serving.wire.tools import Function

_BLANK = r"[ \t\n\r]"
"""What JSON calls whitespace; `\\s` would be Unicode's."""
_GAP = f"/{_BLANK}{{0,4}}/"
_FREE = {"type": "object"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Calls:
    """Which calls an answer may consist of."""

    tools: Sequence[Function]
    """Those that may be called."""
    must_call: bool
    """Whether there is at least one call, and nothing else."""
    one_at_most: bool
    mark_id: int | None = None
    """The special token that begins Mistral's calls, where the tokenizer has one."""


def call_grammar(call_format: CallFormat, calls: Calls, form: ConstraintSpec | None) -> str:
    """The grammar of a whole answer.

    Args:
        call_format: how the model writes calls.
        calls: which ones.
        form: the JSON Schema that an answer without calls keeps to; None: it is any text.

    Raises:
        ConstraintRefusedError: a schema is no JSON object, or has too many keys.
    """
    match call_format:
        case "hermes":
            rules = _hermes(calls, form)
        case "llama3_json":
            rules = _listed(calls, form, key="parameters", separator=f"/;{_BLANK}?/", around=("", ""), first="{")
        case "mistral":
            mark = '"[TOOL_CALLS]"?' if calls.mark_id is None else f"<[{calls.mark_id}]>"
            around = (f'{mark} "["', '"]"')
            rules = _listed(calls, form, key="arguments", separator=f"/,{_BLANK}?/", around=around, first="\\[")
    return "\n".join(rules)


def _hermes(calls: Calls, form: ConstraintSpec | None) -> list[str]:
    body = [f'called: {_GAP} function {_GAP} "</tool_call>"', *_functions(calls, "arguments")]
    more = "" if calls.one_at_most else f"({_GAP} call)*"
    whole = [f"calls: call {more}", 'call: "<tool_call>" called']
    if calls.must_call:
        return ["start: calls", *whole, *body]
    if form is not None:
        return ["start: calls | form", *whole, *body, json_rule("form", form)]
    num = "?" if calls.one_at_most else "*"
    # Text up to a call, calls and text after each other; text that begins a call goes on as one.
    return [f"start: (opened called){num} TEXT", "TEXT: /(.|\\n)*/", 'opened[lazy]: TEXT "<tool_call>"', *body]


def _listed(
    calls: Calls, form: ConstraintSpec | None, *, key: str, separator: str, around: tuple[str, str], first: str
) -> list[str]:
    """Formats in which an answer is either calls or text; `first` is what begins the former."""
    more = "" if calls.one_at_most else f"({separator} function)*"
    whole = [f"calls: {around[0]} function {more} {around[1]}", *_functions(calls, key)]
    if calls.must_call:
        return ["start: calls", *whole]
    if form is not None:
        return ["start: calls | form", *whole, json_rule("form", form)]
    return ["start: calls | TEXT", f"TEXT: /({_BLANK}*[^ \\t\\n\\r{first}](.|\\n)*)?/", *whole]


def _functions(calls: Calls, key: str) -> list[str]:
    rules = ["function: " + " | ".join(f"function_{number}" for number in range(len(calls.tools)))]
    specs = argument_specs(calls.tools, must_call=calls.must_call)
    for number, (tool, spec) in enumerate(zip(calls.tools, specs, strict=True)):
        name, gap = re.escape(tool.name).replace("/", r"\/"), f"{_BLANK}{{0,4}}"
        head = rf'/\{{{gap}"name":{gap}"{name}",{gap}"{key}":{gap}/'
        rules.append(f"function_{number}: {head} arguments_{number} /{gap}\\}}/")
        rules.append(json_rule(f"arguments_{number}", spec))
    return rules


def argument_specs(tools: Sequence[Function], *, must_call: bool) -> list[ConstraintSpec]:
    """What the arguments of each tool may be."""
    specs = []
    for number, tool in enumerate(tools):
        schema: dict[str, Any] = dict(_FREE)
        if tool.strict or must_call:
            schema |= tool.parameters or {}
        if not tool.strict:
            given = schema.get("x-guidance")
            schema["x-guidance"] = {"lenient": True} | (given if isinstance(given, dict) else {})
        field = f"tools[{number}].function.parameters"
        specs.append(ConstraintSpec(kind="json_schema", text=json.dumps(schema), field=field))
    return specs
