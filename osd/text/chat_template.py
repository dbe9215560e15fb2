"""A model's chat template: which forms of message content it accepts, and rendering a conversation with it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jinja2 import TemplateError, TemplateSyntaxError

from osd.records.errors import OsdError, reason

Content = str | Sequence[Mapping[str, str]]
"""The text of a message, or parts of it: `{"type": "text", "text": …}`."""
Message = Mapping[str, Any]
"""A message: `role`, `content`, and any other keys that the template reads."""

Tools = Sequence[Mapping[str, Any]]
"""What the model may call: `{"type": "function", "function": {"name", "description", "parameters"}}`."""
CallFormat = Literal["hermes", "llama3_json", "mistral"]
"""How a model writes calls of tools (see `serving.parsing.tool_calls`)."""

_log = logging.getLogger(__name__)
_FIRST, _SECOND = "probeone", "probetwo"
# The first mark that a template holds tells the format: what it writes calls of earlier turns with, or explains.
_CALL_MARKS: dict[str, CallFormat] = {
    "<tool_call>": "hermes",
    "[TOOL_CALLS]": "mistral",
    "<|python_tag|>": "llama3_json",
    '"parameters":': "llama3_json",
}


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """How a conversation is rendered."""

    variables: Mapping[str, Any] = field(default_factory=dict)
    """Further variables of the template, such as `enable_thinking`; those that it does not use have no effect."""
    add_generation_prompt: bool = True
    """End where the assistant's answer begins."""
    continue_final_message: bool = False
    """End within the last message, which the answer goes on with; then there is no generation prompt."""
    template: str | None = None
    """Jinja text of a template that the request brings; None: the model's."""
    add_special_tokens: bool = False
    """Put those around it that the tokenizer puts around a text, although templates write their own."""


class ChatFeatures(NamedTuple):
    """What a template can do beside plain messages."""

    tools: bool = False
    """It tells the model of tools."""
    calls: bool = False
    """It writes out the tool calls of earlier turns."""
    call_format: CallFormat | None = None
    """None where it shows none of the known ones."""
    reasoning: bool = False
    """Answers may begin with `<think>…</think>`."""
    response_template: Mapping[str, Any] | None = None
    """How transformers reads the model's answers; None where the tokenizer, or transformers, has no such template."""


DEFAULT_OPTIONS = ChatOptions()


class _AcceptedForms(NamedTuple):
    """Which forms of content a template renders in full for one role: a string, a list of one part, of several."""

    text: bool
    part: bool
    parts: bool


class ChatTemplate:
    """Renders conversations, with each message's content in a form that the template accepts.

    Chat templates are Jinja programs: some expect `content` to be a string, some loop over its parts, some do either.
    Given the wrong form, most raise nothing and omit the text. The accepted forms are therefore found by rendering
    probe messages, once per role.

    Args:
        tokenizer: a transformers tokenizer that has a chat template.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._forms_of_role: dict[str, _AcceptedForms] = {}

    def render(self, messages: Sequence[Message], tools: Tools = (), options: ChatOptions = DEFAULT_OPTIONS) -> str:
        """The conversation as text. Raises whatever the template raises."""
        chat = [dict(message) for message in messages]
        told = [dict(tool) for tool in tools] or None
        rendered = self._tokenizer.apply_chat_template(
            chat,
            tools=told,
            add_generation_prompt=options.add_generation_prompt,
            continue_final_message=options.continue_final_message,
            tokenize=False,
            **options.variables,
        )
        return str(rendered)

    @cached_property
    def features(self) -> ChatFeatures:
        """Found by rendering a probe tool and a probe call, and by the marks in the template."""
        ask: Message = {"role": "user", "content": self._adapted("user", "hi")}
        function = {"name": _FIRST, "description": _SECOND, "parameters": {"type": "object", "properties": {}}}
        # Some templates take ids of nine letters or digits only.
        call = {"id": "probecall", "type": "function", "function": {"name": _FIRST, "arguments": {}}}
        result = {"role": "tool", "name": _SECOND, "tool_call_id": "probecall", "content": self._adapted("user", "hi")}
        called: list[Message] = [ask, {"role": "assistant", "content": "", "tool_calls": [call]}, result]
        source = self._tokenizer.chat_template
        texts = source.values() if isinstance(source, Mapping) else [source]
        whole = "\n".join(map(str, texts))
        formats = [known for mark, known in _CALL_MARKS.items() if mark in whole]
        return ChatFeatures(
            tools=_FIRST in self._try_render([ask], [{"type": "function", "function": function}]),
            calls=_FIRST in self._try_render(called),
            call_format=formats[0] if formats else None,
            reasoning="<think>" in whole,
            response_template=_response_template(self._tokenizer),
        )

    def _try_render(self, messages: Sequence[Message], tools: Tools = ()) -> str:
        """What the template makes of it; nothing if it raises."""
        try:
            return self.render(messages, tools)
        except Exception:  # templates raise any type of exception
            return ""

    def adapted(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """The messages, each with its content converted to a form that the template accepts."""
        return [{**message, "content": self._adapted(message["role"], message["content"])} for message in messages]

    def _adapted(self, role: str, content: Content) -> Content:
        forms = self._accepted_forms(role)
        if not isinstance(content, str):
            if forms.parts:
                return content
            content = "\n".join(part["text"] for part in content)
        return content if forms.text or not forms.part else _as_part(content)

    def _accepted_forms(self, role: str) -> _AcceptedForms:
        """Which forms of content the template renders in full for this role."""
        if role not in self._forms_of_role:
            self._forms_of_role[role] = self._probe(role)
        return self._forms_of_role[role]

    def _probe(self, role: str) -> _AcceptedForms:
        part = self._rendered(role, _as_part(_FIRST))
        parts = self._rendered(role, _as_part(_FIRST) + _as_part(_SECOND))
        forms = _AcceptedForms(
            text=_FIRST in self._rendered(role, _FIRST),
            part=_FIRST in part and not _is_literal(part),
            parts=_FIRST in parts and _SECOND in parts and not _is_literal(parts),
        )
        if any(forms):
            return forms
        # The template rejects the role or the probe conversation; it will report that for the real messages.
        return _AcceptedForms(text=True, part=False, parts=False) if role == "user" else self._accepted_forms("user")

    def _rendered(self, role: str, content: Content) -> str:
        message = {"role": role, "content": content}
        others = {"role": "user", "content": "hi" if role == "user" else self._adapted("user", "hi")}
        chats = {"user": [message], "system": [message, others], "assistant": [others, message, others]}
        return self._try_render(chats.get(role, [others, message]))


def _response_template(tokenizer: Any) -> Mapping[str, Any] | None:
    """The tokenizer's response template, if there is one that transformers can apply."""
    template = getattr(tokenizer, "response_template", None)
    if template is None:
        return None
    try:
        from transformers.utils.chat_parsing import ResponseParser

        ResponseParser(template, prefix="")
    except Exception as error:  # a template is data of any kind
        _log.warning("the tokenizer's response template is not used: %s", reason(error))
        return None
    checked: Mapping[str, Any] = template
    return checked


def replace_template(tokenizer: Any, template: str) -> None:
    """Have a tokenizer use another chat template.

    Args:
        tokenizer: a transformers tokenizer.
        template: Jinja text, or the path of a file that holds it.

    Raises:
        OsdError: there is no such file, or the text is no Jinja template.
    """
    is_text = "{" in template
    try:
        tokenizer.chat_template = template if is_text else Path(template).expanduser().read_text(encoding="utf-8")
        ChatTemplate(tokenizer).render([{"role": "user", "content": "hi"}])
    except TemplateSyntaxError as error:
        raise OsdError(f"setting 'target.chat_template' is no Jinja template: {error}") from None
    except TemplateError:
        pass  # it refuses this conversation, and will say of others what it wants
    except (OSError, UnicodeDecodeError) as error:
        raise OsdError(f"setting 'target.chat_template': cannot read {template}: {error}") from None


def _as_part(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


def _is_literal(rendered: str) -> bool:
    """Whether a list was printed as a Python or JSON literal, quotes and braces included."""
    return "'text'" in rendered or '"text"' in rendered
