"""Files of prompts: what is read, and which line is named when one is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from osd.prompt_file import read_prompts
from osd.types import OsdError


def test_prompts_and_messages(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "hi", "more": 1}\n\n{"messages": [{"role": "system", "content": "be brief"}]}\n')
    assert read_prompts(path) == [
        [{"role": "user", "content": "hi"}],
        [{"role": "system", "content": "be brief"}],
    ]


@pytest.mark.parametrize("line", ["{", "[]", '{"text": "hi"}', '{"messages": [{"role": "user"}]}', '{"messages": 3}'])
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
