"""BFCL's descriptions of parameters, as JSON Schemas."""

from __future__ import annotations

from benchmarks.drawn_again import schema_of


def test_the_types_of_bfcl_are_those_of_json_schema() -> None:
    described = {
        "type": "dict",
        "properties": {
            "place": {"type": "tuple", "items": {"type": "float"}, "description": "where"},
            "unit": {"type": "string", "enum": ["a", "b"], "default": "a"},
            "what": {"type": "any", "description": "anything"},
        },
        "required": ["place"],
    }
    assert schema_of(described) == {
        "type": "object",
        "properties": {
            "place": {"type": "array", "items": {"type": "number"}},
            "unit": {"type": "string", "enum": ["a", "b"]},
            "what": {},
        },
        "required": ["place"],
        "additionalProperties": False,
    }
