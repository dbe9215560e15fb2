"""From the description of a constraint to a grammar of llguidance, within limits of time and memory."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from osd.grammar.multiples import MAX_MULTIPLE, common_multiple, too_large
from osd.records.asked.constraint import ConstraintSpec
from osd.records.errors import ConstraintRefusedError

if TYPE_CHECKING:
    from llguidance import LLParserLimits

MAX_CHARS = 1 << 17
"""Longest text of a constraint."""
_MAX_KEYS = 1000
"""Most keys of one object of a schema: compiling takes time that grows with the square of their number."""
_MAX_SYMBOLS = 20_000
_MAX_LEXER_STATES = 20_000
"""About 2 kB each."""
_MAX_MESSAGE_CHARS = 300
_EXCERPT = re.compile(r"\s*(\d+ \||\^|<non-verbose)")
_OPTIONS = '%llguidance {"no_forcing": true}\n'
"""Where only one text can follow, any way of dividing it into tokens is allowed."""
_WHITESPACE = r"[\x20\x0A\x0D\x09]{1,32}"
"""Between the parts of a JSON document; bounded, because a model may otherwise write nothing else."""
_AFTER_REASONING = {
    "optional": _OPTIONS
    + r"""start: thought? /[ \t\n\r]{0,4}/ @answer
thought[lazy]: /[ \t\n\r]{0,4}<think>(.|\n)*<\/think>/""",
    "open": _OPTIONS
    + r"""start: thought /[ \t\n\r]{0,4}/ @answer
thought[lazy]: /(.|\n)*<\/think>/""",
}


def grammar_of(spec: ConstraintSpec) -> str:
    """The grammar in a notation that llguidance reads: Lark's, or several such grammars as JSON.

    Raises:
        ConstraintRefusedError: the text is too long, or no JSON.
    """
    answer = _lark_of(spec)
    if spec.reasoning == "no":
        return answer
    outer = {"lark_grammar": _AFTER_REASONING[spec.reasoning]}
    return json.dumps({"grammars": [outer, {"name": "answer", "lark_grammar": answer}]})


def _lark_of(spec: ConstraintSpec) -> str:
    from llguidance import regex_to_lark

    if len(spec.text) > MAX_CHARS:
        raise refused(spec, f"has {len(spec.text)} characters; at most {MAX_CHARS} are taken")
    match spec.kind:
        case "json_schema":
            return f"{_OPTIONS}{json_rule('start', spec)}"
        case "regex":
            return f"{_OPTIONS}start: /{regex_to_lark(spec.text)}/"
        case "lark":
            return _OPTIONS + spec.text


def json_rule(name: str, spec: ConstraintSpec) -> str:
    """A rule of Lark's notation for the documents of a JSON Schema.

    Raises:
        ConstraintRefusedError: the schema is no JSON object, or has too many keys.
    """
    return f"{name}: %json {_schema(spec)}"


def _schema(spec: ConstraintSpec) -> str:
    """The JSON Schema with our limit on whitespace, unless it says itself how whitespace is to be written."""
    try:
        schema = json.loads(spec.text)
        if schema is True:
            schema = {}
        if not isinstance(schema, dict):
            raise refused(spec, "expected a JSON Schema: an object that some document satisfies")
        if (num_keys := _most_keys(schema)) > _MAX_KEYS:
            raise refused(spec, f"an object of the schema has {num_keys} keys; at most {_MAX_KEYS} are taken")
        if (multiple := common_multiple(schema)) > MAX_MULTIPLE:
            raise refused(spec, too_large(multiple))
        given = schema.get("x-guidance")
        options = given if isinstance(given, dict) else {}
        if not options.keys() & {"whitespace_pattern", "whitespace_flexible"}:
            options = options | {"whitespace_pattern": _WHITESPACE}
        return json.dumps(schema | {"x-guidance": options})
    except (ValueError, RecursionError):
        raise refused(spec, "it is no JSON, or nested too deeply") from None


def _most_keys(value: Any) -> int:
    """The number of keys of the largest object within a JSON value."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return max([len(value) if isinstance(value, dict) else 0, *map(_most_keys, inner)])


def check(spec: ConstraintSpec) -> None:
    """Check a constraint without a tokenizer. Takes milliseconds to a second; other threads run meanwhile.

    Raises:
        ConstraintRefusedError: it is no such grammar, too large, or uses what is not supported.
    """
    from llguidance import LLMatcher

    is_error, messages = LLMatcher.validate_grammar_with_warnings(grammar_of(spec), limits=limits())
    if is_error:
        raise refused(spec, messages[0])


def limits() -> LLParserLimits:
    """Limits on the size of a grammar and on what one step of following it may cost."""
    from llguidance import LLParserLimits

    return LLParserLimits(max_grammar_size=_MAX_SYMBOLS, max_lexer_states=_MAX_LEXER_STATES, verbose_errors=False)


def refused(spec: ConstraintSpec, why: str) -> ConstraintRefusedError:
    """The error that names the request's field; what llguidance shows of the grammar is left out."""
    if why.startswith("NoExtension"):
        why = "no text satisfies it"
    if "Current row has" in why:
        why = "it allows too many different things at one place; simplify it (fewer optional properties, say)"
    line = " ".join(line.strip() for line in why.splitlines() if not _EXCERPT.match(line))
    short = line if len(line) <= _MAX_MESSAGE_CHARS else line[:_MAX_MESSAGE_CHARS] + "…"
    return ConstraintRefusedError(f"'{spec.field}': {short}", spec.field)
