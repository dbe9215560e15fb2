"""Reads answers by the response template that a model's tokenizer brings along (transformers' `response_template`).

Such a template names the marks between which a model writes each field of a message, and how to read what is between
them. transformers' `ResponseParser` applies it; here its events become pieces.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping
from copy import copy
from typing import Any

from serving.parsing.pieces import CallArguments, CallStart, Piece, Reasoning
from serving.parsing.tool_calls import CallsAndContent

_log = logging.getLogger(__name__)
_CALLS = "tool_calls"
_REASONING = ("reasoning_content", "reasoning", "thinking")
Template = Mapping[str, Any]


class TemplateParser(CallsAndContent):
    """See `AnswerParser`. The text includes special tokens as they are spelt, for many marks are such.

    A call is told of once it is complete. What is no call of a known tool, or was cut off within it, is content.

    Args:
        template: the tokenizer's.
        prompt: the prompt's end as text; what follows the template's start anchor in it belongs to the answer.
        names: of the tools.
        max_calls: further calls are dropped.
        tools: as chat templates take them; arguments that the template reads as text are typed by their schemas.
    """

    def __init__(
        self,
        template: Template,
        prompt: str,
        names: Collection[str],
        max_calls: int | None = None,
        tools: Collection[Mapping[str, Any]] = (),
    ) -> None:
        super().__init__(names, max_calls)
        self._template, self._tools = _lenient(template), list(tools)
        self._parser = _parser(self._template, prompt, self._tools)
        self._region = ""
        """What was written so far in a region whose value is known at its end."""
        self._held = ""
        """Whitespace at the end of the reasoning so far, which is dropped if nothing follows."""
        self._has_reasoning = False

    def read(self, text: str) -> list[Piece]:
        """See `AnswerParser`."""
        before = copy(self._parser)
        try:
            events = self._parser.feed(text)
        except Exception as error:  # a region is not what the template says
            if len(text) == 1:
                return self._give_up(error)
            # The events before the fault were lost with it: the text is read again, letter by letter.
            self._parser = before
            return [piece for letter in text for piece in self.read(letter)]
        return self._pieces(events)

    def end(self) -> list[Piece]:
        """See `AnswerParser`."""
        try:
            events = self._parser.finalize()[1]
        except Exception as error:  # as above; often the answer was cut off
            return self._give_up(error) + self._rest()
        return self._pieces(events) + self._rest()

    def _pieces(self, events: list[dict[str, Any]]) -> list[Piece]:
        pieces: list[Piece] = []
        for event in events:
            field, kind = event["field"], event["type"]
            if kind == "region_open":
                self._region = ""
            elif kind == "region_close":
                pieces += self._closed(field, event["value"])
            elif event["dirty"]:
                self._region += event["text"]
            elif field in _REASONING:
                pieces += self._reasoning(event["text"])
            else:
                pieces += self._said(event["text"])
        return pieces

    def _closed(self, field: str, value: Any) -> list[Piece]:
        region, self._region = self._region, ""
        if field in _REASONING:
            self._held = ""
        if field != _CALLS:
            return self._said(region)
        calls = _functions(value)
        if not calls or not all(call.get("name") in self._names for call in calls):
            return self._said(region)
        pieces: list[Piece] = []
        for call in calls:
            arguments = call.get("arguments") or {}
            if not isinstance(arguments, str):
                arguments = json.dumps(arguments, ensure_ascii=False)
            index = self._num_calls
            pieces += self._kept([CallStart(index, call["name"]), CallArguments(index, arguments)])
            self._num_calls += 1
        return pieces

    def _reasoning(self, text: str) -> list[Piece]:
        whole = self._held + text
        if not self._has_reasoning:
            whole = whole.lstrip()
        body = whole.rstrip()
        self._held = whole[len(body) :]
        self._has_reasoning = self._has_reasoning or bool(body)
        return [Reasoning(body)] if body else []

    def _said(self, text: str) -> list[Piece]:
        if self._has_reasoning and not self._has_content:
            self._blanks = ""
            text = text.lstrip()
        return self._content(text)

    def _give_up(self, error: Exception) -> list[Piece]:
        """The region is content, as far as it was read; what follows is read as a new message."""
        # Its message may quote the answer, which no log may hold.
        _log.debug("an answer does not fit its response template: %s", type(error).__name__)
        region, self._region = self._region, ""
        self._parser = _parser(self._template, "", self._tools)
        return self._said(region)


def _functions(value: Any) -> list[dict[str, Any]]:
    """The name and the arguments of each call that was read; empty if it was something else."""
    calls = value if isinstance(value, list) else [value]
    functions = [call.get("function") for call in calls if isinstance(call, dict)]
    return [function for function in functions if isinstance(function, dict)]


def _lenient(template: Template) -> Template:
    """The template without fields that must be there: an answer may be cut off anywhere."""
    fields = {name: {**field, "optional": True} for name, field in template["fields"].items()}
    return {**template, "fields": fields}


def _parser(template: Template, prompt: str, tools: list[Mapping[str, Any]]) -> Any:
    """A new parser, at the place in a message where the prompt ends."""
    from transformers.utils.chat_parsing import ResponseParser
    from transformers.utils.chat_parsing.response_templates import load_response_template

    loaded = load_response_template(template)
    # Without the anchor, transformers would read the whole prompt as part of the answer.
    return ResponseParser(loaded, prefix=prompt if loaded.start_anchor_re.search(prompt) else "", tools=tools)
