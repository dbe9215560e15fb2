"""Files of prompts: what is read, and which line is named when one is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from osd.records.errors import OsdError
from osd.text.prompt_file import read_prompts


def test_prompts_and_messages(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "hi", "more": 1}\n\n{"messages": [{"role": "system", "content": "be brief"}]}\n')
    assert read_prompts(path) == [
        [{"role": "user", "content": "hi"}],
        [{"role": "system", "content": "be brief"}],
    ]


def test_a_line_ends_at_a_line_feed_only(tmp_path: Path) -> None:
    """Text may hold what other standards take for the end of a line, as it is: JSON need not escape it."""
    texts = ["a\u2028b", "a\x85b", "a\u2029b", "a\x7fb"]
    path = tmp_path / "p.jsonl"
    path.write_bytes("".join(f'{{"prompt": "{text}"}}\r\n' for text in texts).encode())
    assert [messages[0]["content"] for messages in read_prompts(path)] == texts
    with pytest.raises(OsdError, match="line 5: expected"):
        path.write_bytes(path.read_bytes() + b"[]\n")
        read_prompts(path)


def test_a_byte_order_mark_is_no_part_of_the_first_prompt(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "hi"}', encoding="utf-8-sig")
    assert read_prompts(path) == [[{"role": "user", "content": "hi"}]]


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        '{"text": "hi"}',
        '{"prompt": 3}',
        '{"messages": [{"role": "user"}]}',
        '{"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]}',
        '{"messages": 3}',
    ],
)
def test_a_line_that_is_no_prompt_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "hi"}\n' + line)
    with pytest.raises(OsdError, match="line 2: expected"):
        read_prompts(path)


def test_an_empty_or_missing_file(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(OsdError, match="holds no prompt"):
        read_prompts(tmp_path / "empty.jsonl")
    with pytest.raises(OsdError, match="cannot read prompts"):
        read_prompts(tmp_path / "missing.jsonl")
