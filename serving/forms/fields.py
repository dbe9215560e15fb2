"""The fields of a request that say what form an answer must have."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from osd.grammar.multiples import MAX_MULTIPLE, common_multiple_in_text, too_large
from osd.records.asked.constraint import ConstraintKind, ConstraintSpec
from serving.forms.json_text import read_json_text
from serving.forms.structural_tag import StructuralTag, StructuralTagFormat, StructuralTagText
from serving.wire.inert_fields import NoEffect, WireModel
from serving.wire.text import Text
from serving.wire.tools import JsonSchema

_OBJECT = {"type": "object"}


class PlainText(WireModel):
    """Any text."""

    type: Literal["text"]


class JsonObject(WireModel):
    """Any JSON object."""

    type: Literal["json_object"]


class NamedSchema(WireModel):
    """A JSON Schema with a name, which the model is not told."""

    name: Annotated[Text, Field(min_length=1, max_length=256)]
    description: Text | None = None
    schema_: JsonSchema = Field(alias="schema")
    strict: Annotated[bool, Field(description="Accepted and not used: answers always keep to the schema.")] = False


class JsonSchemaFormat(WireModel):
    """A JSON document that keeps to a schema."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


ResponseFormat = Annotated[
    PlainText | JsonObject | JsonSchemaFormat | StructuralTagFormat,
    Field(discriminator="type"),
]


Schema = Annotated[
    JsonSchema, BeforeValidator(read_json_text("a JSON Schema"), json_schema_input_type=dict[str, Any] | str)
]
Pattern = Annotated[Text, Field(min_length=1)]
Choices = Annotated[list[Annotated[Text, Field(min_length=1)]], Field(min_length=1, max_length=1024)]


def _lark(text: str) -> str:
    """A grammar in Lark's notation, from that or from GBNF."""
    from llguidance.gbnf_to_lark import any_to_lark

    if (multiple := common_multiple_in_text(text)) > MAX_MULTIPLE:
        raise ValueError(too_large(multiple))
    try:
        return str(any_to_lark(text))
    except Exception as error:  # its reader raises any type of exception
        raise ValueError(f"expected a grammar in Lark's notation or in GBNF: {error}") from None


Grammar = Annotated[Text, Field(min_length=1, max_length=1 << 16), AfterValidator(_lark)]


class StructuredOutputs(WireModel):
    """vLLM's `structured_outputs`, with at most one form of answer."""

    json_: Schema | None = Field(default=None, alias="json")
    regex: Pattern | None = None
    choice: Choices | None = None
    grammar: Grammar | None = None
    json_object: bool = False
    disable_any_whitespace: bool = False
    whitespace_pattern: Pattern | None = None
    disable_additional_properties: Annotated[None, NoEffect(False)] = None
    structural_tag: StructuralTagText | None = None
    disable_fallback: Annotated[bool | None, Field(description="Accepted and not used.")] = None


class FormFields(WireModel):
    """The fields of chat and plain completions; at most one of them may ask for something."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: Schema | None = Field(default=None, description="As structured_outputs.json.")
    guided_regex: Pattern | None = Field(default=None, description="As structured_outputs.regex.")
    guided_choice: Choices | None = Field(default=None, description="As structured_outputs.choice.")
    guided_grammar: Grammar | None = Field(default=None, description="As structured_outputs.grammar.")
    guided_whitespace_pattern: Pattern | None = Field(default=None, description="Of the JSON that is asked for.")
    structural_tag: StructuralTagText | None = Field(default=None, description="As structured_outputs.structural_tag.")
    guided_decoding_backend: Annotated[str | None, Field(description="Accepted and not used.")] = None

    def constraint_specs(self) -> list[ConstraintSpec]:
        """What each field asks for; a request may have one at most."""
        specs = [*_of_format(self.response_format)]
        if self.structural_tag is not None:
            specs.append(self.structural_tag.spec("structural_tag"))
        whitespace = _whitespace(self.guided_whitespace_pattern)
        if (asked := self.structured_outputs) is not None:
            own = _whitespace(asked.whitespace_pattern)
            own |= {"whitespace_flexible": False} if asked.disable_any_whitespace else {}
            specs += _specs("structured_outputs.", own, asked.json_, asked.regex, asked.choice, asked.grammar)
            if asked.json_object:
                specs.append(_json(_OBJECT, "structured_outputs.json_object", own))
            if asked.structural_tag is not None:
                specs.append(asked.structural_tag.spec("structured_outputs.structural_tag"))
        specs += _specs(
            "guided_", whitespace, self.guided_json, self.guided_regex, self.guided_choice, self.guided_grammar
        )
        return specs


def _of_format(asked: PlainText | JsonObject | JsonSchemaFormat | StructuralTag | None) -> list[ConstraintSpec]:
    match asked:
        case StructuralTag():
            return [asked.spec("response_format")]
        case JsonObject():
            return [_json(_OBJECT, "response_format", {})]
        case JsonSchemaFormat():
            return [_json(asked.json_schema.schema_, "response_format.json_schema.schema", {})]
    return []


def _specs(
    prefix: str,
    whitespace: dict[str, Any],
    schema: dict[str, Any] | None,
    regex: str | None,
    choices: list[str] | None,
    grammar: str | None,
) -> list[ConstraintSpec]:
    specs = [_json(schema, f"{prefix}json", whitespace)] if schema is not None else []
    lark = (
        None
        if choices is None
        else "start: " + " | ".join(json.dumps(choice, ensure_ascii=False) for choice in choices)
    )
    others: list[tuple[ConstraintKind, str | None, str]] = [
        ("regex", regex, "regex"),
        ("lark", lark, "choice"),
        ("lark", grammar, "grammar"),
    ]
    return specs + [
        ConstraintSpec(kind=kind, text=text, field=prefix + name) for kind, text, name in others if text is not None
    ]


def _json(schema: dict[str, Any], field: str, whitespace: dict[str, Any]) -> ConstraintSpec:
    if whitespace:
        options = schema.get("x-guidance")
        schema = schema | {"x-guidance": (options if isinstance(options, dict) else {}) | whitespace}
    return ConstraintSpec(kind="json_schema", text=json.dumps(schema), field=field)


def _whitespace(pattern: str | None) -> dict[str, Any]:
    return {} if pattern is None else {"whitespace_pattern": pattern}
