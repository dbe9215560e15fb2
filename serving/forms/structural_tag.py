"""Structural tags: parts of an answer between marks that have a form, in xgrammar's notation, which vLLM takes.

An answer is described by a tree of formats. Only the end of an answer, or a tag's content, may be any text, since a
grammar can tell where free text ends only by the mark that follows it. Marks are text; special tokens are not.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator

from osd.grammar.source import json_rule
from osd.records.asked.constraint import ConstraintSpec
from osd.records.errors import ConstraintRefusedError
from serving.forms.json_text import read_json_text
from serving.wire.inert_fields import WireModel
from serving.wire.text import Text
from serving.wire.tools import JsonSchema, shallow

Mark = Annotated[Text, Field(min_length=1, max_length=1024)]
_TEXT = "TEXT: /(.|\\n)*/"


class ConstString(WireModel):
    """A fixed text."""

    type: Literal["const_string"]
    value: Mark


class SchemaPart(WireModel):
    """A JSON document that keeps to a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


class RegexPart(WireModel):
    """A match of a regular expression."""

    type: Literal["regex"]
    pattern: Mark


class AnyText(WireModel):
    """Any text."""

    type: Literal["any_text"]


class Tag(WireModel):
    """A mark, what follows it, and the mark that ends it."""

    type: Literal["tag"] = "tag"
    begin: Mark
    content: Format
    end: Text


Tags = Annotated[list[Tag], Field(min_length=1, max_length=128)]


class InOrder(WireModel):
    """One part after the other."""

    type: Literal["sequence"]
    elements: Annotated[list[Format], Field(min_length=1, max_length=128)]


class Either(WireModel):
    """One of several parts."""

    type: Literal["or"]
    elements: Annotated[list[Format], Field(min_length=1, max_length=128)]


class TriggeredTags(WireModel):
    """Any text, in which each trigger begins a tag."""

    type: Literal["triggered_tags"] = "triggered_tags"
    triggers: Annotated[list[Mark], Field(min_length=1, max_length=128)]
    tags: Tags
    at_least_one: bool = False
    stop_after_first: bool = False

    @field_validator("tags")
    @classmethod
    def _are_triggered(cls, tags: list[Tag], info: ValidationInfo) -> list[Tag]:
        for tag in tags:
            if not any(tag.begin.startswith(trigger) for trigger in info.data.get("triggers", [tag.begin])):
                raise ValueError(f"no trigger begins the tag {tag.begin!r}")
        return tags


class SeparatedTags(WireModel):
    """Tags with a separator between them."""

    type: Literal["tags_with_separator"]
    tags: Tags
    separator: Text
    at_least_one: bool = False
    stop_after_first: bool = False


Format = Annotated[
    ConstString | SchemaPart | RegexPart | AnyText | Tag | InOrder | Either | TriggeredTags | SeparatedTags,
    Field(discriminator="type"),
]


def _shallow(value: Any) -> Any:
    return shallow(value) if isinstance(value, dict) else value


class _Structure(WireModel):
    """A tag of the older notation."""

    begin: Mark
    schema_: JsonSchema = Field(alias="schema")
    end: Text


class StructuralTag(WireModel):
    """The whole answer: `format`, or `structures` and `triggers` of the older notation."""

    type: Literal["structural_tag"]
    structures: Annotated[list[_Structure], Field(min_length=1, max_length=128)] | None = None
    triggers: Annotated[list[Mark], Field(min_length=1, max_length=128)] | None = None
    format: Annotated[Format | None, BeforeValidator(_shallow)] = Field(default=None, validate_default=True)

    @field_validator("format")
    @classmethod
    def _is_given(cls, value: Format | None, info: ValidationInfo) -> Format | None:
        older = [info.data.get(name) is not None for name in ("structures", "triggers")]
        if value is not None and any(older):
            raise ValueError("give either it, or structures and triggers")
        if value is None and older == [True, True]:
            return older_format(info.data["structures"], info.data["triggers"])
        if value is None:
            raise ValueError("give it, or structures and triggers")
        return value

    def spec(self, name: str) -> ConstraintSpec:
        """The constraint that the field `name` asks for."""
        assert self.format is not None
        rules = _Rules(name)
        start = rules.expression(self.format, is_last=True)
        lines = [f"start: {start}", *rules.lines, *([_TEXT] if rules.has_text else [])]
        return ConstraintSpec(kind="lark", text="\n".join(lines), field=name)


def older_format(structures: list[_Structure], triggers: list[str]) -> TriggeredTags:
    """The older notation in terms of the newer one."""
    tags = [
        {"begin": one.begin, "content": {"type": "json_schema", "json_schema": one.schema_}, "end": one.end}
        for one in structures
    ]
    return TriggeredTags.model_validate({"triggers": triggers, "tags": tags})


@dataclass
class _Rules:
    """Builds the rules of a grammar in llguidance's variant of Lark's notation."""

    name: str
    """Name of the request's field, for error messages."""
    lines: list[str] = field(default_factory=list)
    has_text: bool = False

    def expression(self, part: Format, *, is_last: bool) -> str:
        """The right side of a rule for a part of the answer; `is_last`: nothing follows it."""
        match part:
            case ConstString():
                return _literal(part.value)
            case SchemaPart():
                text = json.dumps(part.json_schema)
                return self._rule("", json_rule("", ConstraintSpec(kind="json_schema", text=text, field=self.name))[2:])
            case RegexPart():
                return self._regex(part.pattern)
            case AnyText():
                return self._text(is_last)
            case Tag():
                return f"{_literal(part.begin)} {self._rest(part)}"
            case InOrder():
                last = len(part.elements) - 1
                return " ".join(
                    self.expression(one, is_last=is_last and at == last) for at, one in enumerate(part.elements)
                )
            case Either():
                return "(" + " | ".join(self.expression(one, is_last=is_last) for one in part.elements) + ")"
            case TriggeredTags():
                return self._triggered(part, is_last)
            case SeparatedTags():
                return self._separated(part)

    def _rest(self, tag: Tag, num_read: int | None = None) -> str:
        """What follows the first `num_read` characters of a tag (None: its beginning)."""
        begin = tag.begin if num_read is not None else ""
        rest = _literal(begin[num_read or 0 :])
        if isinstance(tag.content, AnyText) and tag.end:
            self.has_text = True
            return f"{rest} {self._rule('[lazy]', f'TEXT {_literal(tag.end)}')}"
        return f"{rest} {self.expression(tag.content, is_last=False)} {_literal(tag.end)}"

    def _triggered(self, part: TriggeredTags, is_last: bool) -> str:
        text = self._text(is_last)
        cases = []
        for trigger in part.triggers:
            rests = [self._rest(tag, len(trigger)) for tag in part.tags if tag.begin.startswith(trigger)]
            if rests:
                opened = self._rule("[lazy]", f"TEXT {_literal(trigger)}")
                cases.append(f"{opened} ({' | '.join(rests)})")
        one = self._rule("", " | ".join(cases))
        if part.stop_after_first:
            return one if part.at_least_one else f"({one} | {text})"
        return f"{one}{'+' if part.at_least_one else '*'} {text}"

    def _separated(self, part: SeparatedTags) -> str:
        one = self._rule("", " | ".join(self.expression(tag, is_last=False) for tag in part.tags))
        more = "" if part.stop_after_first else f" ({_literal(part.separator)} {one})*"
        return f"{one}{more}" if part.at_least_one else f"({one}{more})?"

    def _text(self, is_last: bool) -> str:
        if not is_last:
            raise ValueError("any text can only be a tag's content, or the end of the answer")
        self.has_text = True
        return "TEXT"

    def _regex(self, pattern: str) -> str:
        from llguidance import regex_to_lark

        return f"/{regex_to_lark(pattern)}/"

    def _rule(self, options: str, expression: str) -> str:
        """A rule of its own; returns its name."""
        name = f"part_{len(self.lines)}"
        self.lines.append(f"{name}{options}: {expression}")
        return name


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if text else ""


def _has_a_grammar(tag: StructuralTag) -> StructuralTag:
    try:
        tag.spec("")
    except ConstraintRefusedError as error:
        raise ValueError(str(error).removeprefix("'': ")) from None
    return tag


StructuralTagFormat = Annotated[StructuralTag, AfterValidator(_has_a_grammar)]
StructuralTagText = Annotated[
    StructuralTagFormat,
    BeforeValidator(read_json_text("a structural tag"), json_schema_input_type=StructuralTag | str),
]
"""Type of a request field that is a structural tag: as JSON, or as a string of JSON."""
