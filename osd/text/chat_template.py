"""A model's chat template: what shape of content it takes, and conversations written out by it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Content = str | Sequence[Mapping[str, str]]
"""The text of a message, or parts of it: `{"type": "text", "text": …}`."""
Message = Mapping[str, Any]
"""`role`, `content`, and whatever else a template knows."""

_FIRST, _SECOND = "probeone", "probetwo"


class _Takes(NamedTuple):
    """What a template writes out whole, for one role: a text, a list of one part, a list of several parts."""

    text: bool
    part: bool
    parts: bool


class ChatTemplate:
    """Templates are programs: some take a message's text, some loop over its parts, some do either.

    Given the wrong shape, most of them raise nothing and leave the text out. So what a template takes is found by
    having it write out probes, once for each role.

    Args:
        tokenizer: of transformers; it has a chat template.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._takes: dict[str, _Takes] = {}

    def render(self, messages: Sequence[Message]) -> str:
        """The conversation as text, up to where the assistant's answer begins. Raises what the template does."""
        chat = [dict(message) for message in messages]
        return str(self._tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False))

    def shaped(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """The same messages, each with content of a shape that the template takes."""
        return [{**message, "content": self._shaped(message["role"], message["content"])} for message in messages]

    def _shaped(self, role: str, content: Content) -> Content:
        takes = self.takes(role)
        if not isinstance(content, str):
            if takes.parts:
                return content
            content = "\n".join(part["text"] for part in content)
        return content if takes.text or not takes.part else _as_part(content)

    def takes(self, role: str) -> _Takes:
        """What the template writes out in a message of this role."""
        if role not in self._takes:
            self._takes[role] = self._probe(role)
        return self._takes[role]

    def _probe(self, role: str) -> _Takes:
        part = self._written(role, _as_part(_FIRST))
        parts = self._written(role, _as_part(_FIRST) + _as_part(_SECOND))
        takes = _Takes(
            text=_FIRST in self._written(role, _FIRST),
            part=_FIRST in part and not _is_literal(part),
            parts=_FIRST in parts and _SECOND in parts and not _is_literal(parts),
        )
        if any(takes):
            return takes
        # The template refuses the role, or these messages: it will say so of the real ones.
        return _Takes(text=True, part=False, parts=False) if role == "user" else self.takes("user")

    def _written(self, role: str, content: Content) -> str:
        message = {"role": role, "content": content}
        others = {"role": "user", "content": "hi" if role == "user" else self._shaped("user", "hi")}
        chats = {"user": [message], "system": [message, others], "assistant": [others, message, others]}
        try:
            return self.render(chats.get(role, [others, message]))
        except Exception:  # as many kinds as there are templates
            return ""


def _as_part(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


def _is_literal(written: str) -> bool:
    """Whether a list was written out as such, with its quotes and braces."""
    return "'text'" in written or '"text"' in written
