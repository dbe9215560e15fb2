"""A constraint on an answer as its client describes it: plain data, compiled in the engine's process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ConstraintKind = Literal["json_schema", "regex", "lark"]
ReasoningFirst = Literal["no", "optional", "open"]
"""Whether `<think>…</think>` comes first: not, perhaps, or with `<think>` at the end of the prompt already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConstraintSpec:
    """Which texts an answer may be.

    Example: `ConstraintSpec(kind="regex", text="yes|no", field="structured_outputs.regex")`
    """

    kind: ConstraintKind
    text: str
    """A JSON Schema as JSON, a regular expression, or a context-free grammar in Lark's notation."""
    reasoning: ReasoningFirst = "no"
    """Reasoning is not constrained, and what follows it is."""
    field: str = "constraint"
    """The request's field that asks for it; named in errors."""
