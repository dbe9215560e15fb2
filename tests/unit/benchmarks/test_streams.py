"""Streams of prompts as they are read from files."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.adaptation.streams import read_stream
from benchmarks.prompts import read_bfcl


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85"])
def test_a_line_ends_at_a_line_feed_only(tmp_path: Path, separator: str) -> None:
    """Texts may hold what other standards take for the end of a line, and JSON need not escape it."""
    text = f"one{separator}two"
    path = tmp_path / "sums.jsonl"
    path.write_text(f'{{"prompt": "{text}"}}\n{{"domain": "of {text}", "prompt": "{text}"}}\n', encoding="utf-8")
    prompts = read_stream(str(path), 9)
    assert [prompt.domain for prompt in prompts] == ["sums", f"of {text}"]
    assert [prompt.messages[0]["content"] for prompt in prompts] == [text, text]
    question = f'{{"question": [[{{"role": "user", "content": "{text}"}}]], "function": []}}\n'
    path.write_text(question * 2, encoding="utf-8")
    assert [messages[1]["content"] for messages in read_bfcl(path)] == [text, text]
