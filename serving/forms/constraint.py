"""What a request's answer may be, as one constraint: the form that was asked for, and enforced tool calls."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from osd.grammar.source import check
from osd.records.asked.constraint import ConstraintSpec, ReasoningFirst
from osd.text.chat_template import CallFormat
from serving.codec import Codec
from serving.forms.calls import Calls, call_grammar
from serving.wire.chat_request import ChatRequest
from serving.wire.errors import ApiError
from serving.wire.tools import ChosenTool

_checking = asyncio.Semaphore(1)
"""One at a time, so that requests with large grammars cannot occupy all threads that others need."""


def one_form(specs: Sequence[ConstraintSpec]) -> ConstraintSpec | None:
    """The only constraint that a request asks for; None if there is none.

    Raises:
        ApiError: 400, there are several.
    """
    if len(specs) > 1:
        fields = " and ".join(f"'{spec.field}'" for spec in specs)
        message = f"{fields} ask for different forms of answer; give one of them."
        raise ApiError(400, message, param=specs[1].field, code="invalid_value")
    return specs[0] if specs else None


def chat_constraint(
    body: ChatRequest, codec: Codec, call_format: CallFormat | None, *, reasoning: ReasoningFirst
) -> ConstraintSpec | None:
    """What the answer to a chat may be; None: anything.

    Args:
        body: the request.
        codec: knows the tokens that mark calls.
        call_format: how the model writes calls; None where there are no tools.
        reasoning: whether the model reasons before it answers.

    Raises:
        ApiError: 400, the request asks for what cannot be combined.
        ConstraintRefusedError: a schema is no JSON object, or has too many keys.
    """
    form = one_form(body.constraint_specs())
    if form is not None:
        form = replace(form, reasoning=reasoning)
    if call_format is None or not body.enforces_calls:
        return form
    if form is not None and form.kind != "json_schema":
        message = f"'{form.field}' cannot be combined with tools; ask for JSON, or leave the tools out."
        raise ApiError(400, message, param=form.field, code="invalid_value")
    if form is not None and call_format == "llama3_json" and not body.must_call:
        message = f"'{form.field}' and tools: this model writes both as JSON objects; leave one of them out."
        raise ApiError(400, message, param=form.field, code="invalid_value")
    calls = Calls(
        tools=body.callable_tools,
        must_call=body.must_call,
        one_at_most=not body.parallel_tool_calls or isinstance(body.tool_choice, ChosenTool),
        mark_id=_special_id(codec, "[TOOL_CALLS]"),
    )
    text = call_grammar(call_format, calls, form)
    return ConstraintSpec(kind="lark", text=text, field="tools", reasoning=reasoning)


def _special_id(codec: Codec, spelling: str) -> int | None:
    ids = codec.encode_text(spelling, add_special_tokens=False)
    return ids[0] if len(ids) == 1 and not codec.token_bytes(ids[0]) else None


async def checked(spec: ConstraintSpec | None) -> ConstraintSpec | None:
    """The constraint itself, once it is known to be a grammar that is small enough.

    Raises:
        ConstraintRefusedError: it is not.
    """
    if spec is not None:
        async with _checking:
            await asyncio.to_thread(check, spec)
    return spec
