"""Prompts to distil a general drafter on, apart from every prompt that benchmarks evaluate with.

Tool calls from files of BFCL that are not evaluated, functions of Python's own library to complete, and replies (not
openings) of chatterbot's conversations. Whatever an evaluation prompt also asks is left out.

    python -m benchmarks.training_prompts OUT.jsonl
"""

from __future__ import annotations

import ast
import json
import random
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import yaml

from benchmarks.prompts import code_prompts, package_data, read_bfcl, small_talk_prompts, tool_call_prompts
from osd.prompt_file import Messages

_BFCL_FILES = (
    "irrelevance",
    "live_irrelevance",
    "live_relevance",
    "live_parallel",
    "live_parallel_multiple",
    "parallel_multiple",
    "simple_java",
    "simple_javascript",
)
_MAX_FUNCTIONS = 2000
_MIN_DOCSTRING_CHARS, _MAX_PROMPT_CHARS = 60, 1200


def training_prompts() -> list[Messages]:
    """All of them, shuffled."""
    evaluated = {messages[-1]["content"] for messages in (*tool_call_prompts(), *code_prompts(), *small_talk_prompts())}
    prompts = [*_tool_calls(), *_functions(), *_replies()]
    apart = {json.dumps(messages): messages for messages in prompts if messages[-1]["content"] not in evaluated}
    shuffled = list(apart.values())
    random.Random(0).shuffle(shuffled)
    return shuffled


def _tool_calls() -> Iterator[Messages]:
    data = package_data("bfcl_eval", "data", "bfcl-eval")
    for name in _BFCL_FILES:
        yield from read_bfcl(data / f"BFCL_v4_{name}.json")


def _functions() -> Iterator[Messages]:
    """Signature and docstring of functions in the standard library, as HumanEval shows its own."""
    found = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        source = path.read_text(encoding="utf-8", errors="replace")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef) and len(ast.get_docstring(node) or "") >= _MIN_DOCSTRING_CHARS:
                lines = source.splitlines()[node.lineno - 1 : node.body[0].end_lineno]
                indent = len(lines[0]) - len(lines[0].lstrip())
                found.append("\n".join(line[indent:] for line in lines))
    random.Random(1).shuffle(found)
    for text in [text for text in found if len(text) <= _MAX_PROMPT_CHARS][:_MAX_FUNCTIONS]:
        yield [{"role": "user", "content": f"Complete this function:\n{text}\n"}]


def _replies() -> Iterator[Messages]:
    data = package_data("chatterbot_corpus", "data", "chatterbot-corpus")
    for path in sorted((data / "english").glob("*.yml")):
        for turns in yaml.safe_load(path.read_text())["conversations"]:
            for reply in turns[1:]:
                yield [{"role": "user", "content": str(reply)}]


def main() -> None:
    """Write them."""
    prompts = training_prompts()
    Path(sys.argv[1]).write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in prompts))
    print(f"{len(prompts)} prompts")


if __name__ == "__main__":
    main()
