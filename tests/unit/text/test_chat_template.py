"""Messages keep their text, whatever shape of content a chat template takes."""

from __future__ import annotations

from typing import Any

import pytest

from osd.text.chat_template import ChatTemplate
from osd.text.codec import TextCodec
from tests.kit.tokenizer_kit import CHATML, tokenizer_of

TEXT = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
ADDED = "{% for m in messages %}{{ '[' + m['role'] + ']' + m['content'] }}{% endfor %}"
ONLY_TEXT = "{% for m in messages %}[{{ m.role }}]{% if m.content is string %}{{ m.content }}{% endif %}{% endfor %}"
PARTS = "{% for m in messages %}[{{ m.role }}]{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}"
SELECTED = (
    "{% for m in messages %}[{{ m.role }}]"
    "{% for p in m.content | selectattr('type', 'equalto', 'text') %}{{ p['text'] }}{% endfor %}{% endfor %}"
)
EITHER = (
    "{% for m in messages %}[{{ m.role }}]{% if m.content is string %}{{ m.content }}"
    "{% else %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endif %}{% endfor %}"
)
JSON = "{% for m in messages %}[{{ m.role }}]{{ m.content | tojson }}{% endfor %}"
SYSTEM_AS_TEXT = (
    "{% for m in messages %}[{{ m.role }}]{% if m.role == 'system' %}{{ m.content }}"
    "{% else %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endif %}{% endfor %}"
)
FIRST_PART = "{% for m in messages %}[{{ m.role }}]{{ m.content[0].text }}{% endfor %}"


def _rendered(template: str, messages: list[dict[str, Any]]) -> str:
    chat = ChatTemplate(tokenizer_of("byte-level", template))
    return chat.render(chat.adapted(messages))


def _parts(*texts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in texts]


@pytest.mark.parametrize("template", [TEXT, ADDED, ONLY_TEXT, PARTS, SELECTED, EITHER, SYSTEM_AS_TEXT, FIRST_PART])
@pytest.mark.parametrize("as_parts", [False, True], ids=["text", "a part"])
def test_the_text_of_every_message_is_kept(template: str, as_parts: bool) -> None:
    texts = [("system", "be brief"), ("user", "hi"), ("assistant", "hello"), ("user", "type {'x': 1}")]
    messages = [{"role": role, "content": _parts(text) if as_parts else text} for role, text in texts]
    assert _rendered(template, messages) == "".join(f"[{role}]{text}" for role, text in texts)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        # Templates that take text get the parts on lines of their own.
        (TEXT, "one\ntwo"),
        (ADDED, "one\ntwo"),
        (ONLY_TEXT, "one\ntwo"),
        # Those that take parts put them together themselves.
        (PARTS, "onetwo"),
        (SELECTED, "onetwo"),
        (EITHER, "onetwo"),
        # One that reads a single part gets all text in it.
        (FIRST_PART, "one\ntwo"),
        # A list written out as such is not what the client said, and neither is its beginning.
        (JSON, '"one\\ntwo"'),
    ],
)
def test_several_parts(template: str, expected: str) -> None:
    assert _rendered(template, [{"role": "user", "content": _parts("one", "two")}]) == "[user]" + expected


def test_what_else_a_message_holds_is_left_as_it_is() -> None:
    named = "{% for m in messages %}{{ m.name }}:{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}"
    assert _rendered(named, [{"role": "user", "name": "Ann", "content": "hi"}]) == "Ann:hi"


def test_roles_that_a_template_refuses_are_refused_in_its_words() -> None:
    picky = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML
    codec = TextCodec(tokenizer_of("byte-level", picky), model_id="tiny", context_tokens=64)
    with pytest.raises(ValueError, match="tiny refuses these messages: no system role"):
        codec.encode_chat([{"role": "system", "content": "hi"}])
    assert codec.encode_chat([{"role": "user", "content": "hi"}])


def test_a_template_is_probed_once_a_role() -> None:
    tokenizer = tokenizer_of("byte-level", PARTS)
    chat = ChatTemplate(tokenizer)
    chat.adapted([{"role": "user", "content": "hi"}])
    tokenizer.chat_template = TEXT
    assert chat.adapted([{"role": "user", "content": "hi"}]) == [{"role": "user", "content": _parts("hi")}]
