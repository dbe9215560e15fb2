"""Prompts in a file: one JSON object a line (JSONL)."""

from __future__ import annotations

import json
from pathlib import Path

from osd.records.errors import OsdError

Messages = list[dict[str, str]]


def read_prompts(path: Path) -> list[Messages]:
    """Lines of `{"prompt": "…"}` or `{"messages": [{"role": "user", "content": "…"}, …]}`, as chats.

    A line ends at a line feed and nowhere else: JSON strings may hold U+2028, U+0085 and others at which
    `str.splitlines` would cut.

    Raises:
        OsdError: the file cannot be read, holds nothing, or a line is neither; the message names it.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise OsdError(f"cannot read prompts from {path}: {error}; give a JSONL file") from None
    prompts = [_read(path, number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not prompts:
        raise OsdError(f'{path} holds no prompt; give one JSON object a line: {{"prompt": "…"}}')
    return prompts


def _read(path: Path, number: int, line: str) -> Messages:
    try:
        record = json.loads(line)
        messages = record["messages"] if "messages" in record else [{"role": "user", "content": record["prompt"]}]
        chat = [{"role": one["role"], "content": one["content"]} for one in messages]
        if not all(isinstance(text, str) for message in chat for text in message.values()):
            raise TypeError
        return chat
    except (ValueError, KeyError, TypeError):
        expected = '{"prompt": "…"} or {"messages": [{"role": …, "content": …}]}'
        raise OsdError(f"{path}, line {number}: expected {expected}") from None
