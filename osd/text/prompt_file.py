"""Reads a file of prompts: one JSON object per line (JSONL)."""

from __future__ import annotations

import json
from pathlib import Path

from osd.records.errors import OsdError

Messages = list[dict[str, str]]


def read_prompts(path: Path) -> list[Messages]:
    """Lines of `{"prompt": "…"}` or `{"messages": [{"role": "user", "content": "…"}, …]}`, as conversations.

    Only a line feed ends a line; `str.splitlines` would also split at U+2028 and others, which JSON strings may hold.

    Raises:
        OsdError: the file cannot be read or is empty, or a line has neither form; the message names the line.
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
