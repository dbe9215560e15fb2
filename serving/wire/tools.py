"""Tools in a request: what the model may call, and the calls of earlier turns."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from serving.wire.inert_fields import NoEffect, WireModel
from serving.wire.text import Text

MAX_TOOLS = 128
_DEEPEST = 64

ToolName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,128}$")]


def shallow(value: dict[str, Any]) -> dict[str, Any]:
    """Raise ValueError if it is nested too deeply."""
    level: list[Any] = [value]
    for _ in range(_DEEPEST):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return value
    raise ValueError(f"it is nested more than {_DEEPEST} levels deep")


JsonSchema = Annotated[dict[str, Any], AfterValidator(shallow)]


class Function(WireModel):
    """A function that the model may call."""

    name: ToolName
    description: Text | None = None
    parameters: JsonSchema | None = Field(
        default=None, description="JSON Schema of the arguments, for the model to read."
    )
    strict: bool = Field(default=False, description="Its arguments always keep to the schema.")
    defer_loading: Annotated[None, NoEffect(False)] = None

    def for_template(self) -> dict[str, Any]:
        """The tool as chat templates expect it."""
        parameters = self.parameters or {"type": "object", "properties": {}}
        function = {"name": self.name, "description": self.description or "", "parameters": parameters}
        return {"type": "function", "function": function}


class Tool(WireModel):
    """A tool; only functions are supported."""

    type: Literal["function"]
    function: Function
    defer_loading: Annotated[None, NoEffect(False)] = None


def unclashing(names: list[str]) -> None:
    """Raise ValueError if two tools have one name, or there are too many."""
    if len(names) > MAX_TOOLS:
        raise ValueError(f"at most {MAX_TOOLS} tools are taken")
    twice = next((name for at, name in enumerate(names) if name in names[:at]), None)
    if twice is not None:
        raise ValueError(f"two tools are named {twice!r}; give each a name of its own")


def _unclashing_tools(tools: list[Tool]) -> list[Tool]:
    unclashing([tool.function.name for tool in tools])
    return tools


Tools = Annotated[list[Tool], AfterValidator(_unclashing_tools)]


class ChosenFunction(WireModel):
    """The function that is to be called."""

    name: ToolName


class ChosenTool(WireModel):
    """A choice of one tool."""

    type: Literal["function"]
    function: ChosenFunction

    @property
    def names(self) -> list[str]:
        """The tools that may be called."""
        return [self.function.name]


class AllowedList(WireModel):
    """The tools that may be called, and whether one has to be."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[ChosenTool], Field(min_length=1, max_length=MAX_TOOLS)]


class AllowedTools(WireModel):
    """A choice of some tools; the model is told of all of them."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedList

    @property
    def names(self) -> list[str]:
        """The tools that may be called."""
        return [tool.function.name for tool in self.allowed_tools.tools]


ToolChoice = Literal["none", "auto", "required"] | ChosenTool | AllowedTools


def _json_object(text: str) -> str:
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ValueError("expected a JSON object, written as a string")
    shallow(value)
    return text


Arguments = Annotated[Text, AfterValidator(_json_object)]


class CalledFunction(WireModel):
    """What was called, and with what."""

    name: ToolName
    arguments: Arguments
    parsed_arguments: Annotated[Any, Field(description="Accepted and not used: clients' helpers add it.")] = None


class ToolCall(WireModel):
    """A call that the assistant made in an earlier turn."""

    id: Annotated[str, Field(min_length=1, max_length=256)]
    type: Literal["function"] = "function"
    function: CalledFunction
    index: Annotated[int | None, Field(description="Accepted and not used.")] = None

    def for_template(self) -> dict[str, Any]:
        """The call as chat templates expect it, with its arguments as an object."""
        arguments = json.loads(self.function.arguments or "{}")
        return {"id": self.id, "type": "function", "function": {"name": self.function.name, "arguments": arguments}}
