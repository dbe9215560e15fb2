"""Prompts to distil a general drafter on, disjoint from the prompts that benchmarks evaluate with.

Tool calls from BFCL files that are not evaluated, and their questions without tools; functions of Python's standard
library and of installed packages to complete, and the first sentences of their docstrings as tasks; replies (not
openings) from chatterbot's conversations. Prompts that an evaluation also uses are dropped.

    python -m benchmarks.training_prompts OUT.jsonl
"""

from __future__ import annotations

import ast
import importlib.util
import json
import random
import sys
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import yaml

from benchmarks.prompts import EvaluationPrompts, package_data, read_bfcl
from osd.text.prompt_file import Messages

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
_PACKAGES = ("networkx", "sympy", "mpmath", "numpy")
"""Packages with many small functions whose docstrings have examples, as HumanEval's do."""
_MAX_FUNCTIONS, _MAX_PACKAGE_FUNCTIONS, _MAX_TASKS = 2000, 3000, 2000
_MIN_DOCSTRING_CHARS, _MAX_PROMPT_CHARS = 60, 1200
_BLOCKS = (ast.stmt, ast.ExceptHandler, ast.match_case)
"""The kinds of nodes in which a function's definition can be."""


def training_prompts() -> list[Messages]:
    """All prompts, shuffled."""
    evaluated = EvaluationPrompts()
    prompts = [*_tool_calls(), *_functions(), *_replies(), *_package_functions(), *_questions(), *_tasks()]
    apart = {json.dumps(messages): messages for messages in prompts if messages[-1]["content"] not in evaluated}
    shuffled = list(apart.values())
    random.Random(0).shuffle(shuffled)
    return shuffled


def _tool_calls() -> Iterator[Messages]:
    data = package_data("bfcl_eval", "data", "bfcl-eval")
    for name in _BFCL_FILES:
        yield from read_bfcl(data / f"BFCL_v4_{name}.json")


def _questions() -> Iterator[Messages]:
    """BFCL's questions without tools."""
    for messages in _tool_calls():
        yield messages[-1:]


def _functions() -> Iterator[Messages]:
    """Signatures and docstrings of functions in the standard library, in HumanEval's format."""
    found = [text for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")) for text, _ in _documented(path)]
    random.Random(1).shuffle(found)
    yield from _completions(found, _MAX_FUNCTIONS)


def _package_functions() -> Iterator[Messages]:
    """Functions of installed packages whose docstrings have examples."""
    found = [text for text, docstring in _of_packages() if ">>>" in docstring]
    random.Random(2).shuffle(found)
    yield from _completions(found, _MAX_PACKAGE_FUNCTIONS)


def _completions(functions: list[str], most: int) -> Iterator[Messages]:
    for text in [text for text in functions if len(text) <= _MAX_PROMPT_CHARS][:most]:
        yield [{"role": "user", "content": f"Complete this function:\n{text}\n"}]


def _tasks() -> Iterator[Messages]:
    """Tasks to write a function, from the docstrings of installed packages."""
    sentences = [" ".join(docstring.split("\n\n")[0].split()) for _, docstring in _of_packages()]
    sentences = list(dict.fromkeys(one for one in sentences if 40 <= len(one) <= 200))
    random.Random(3).shuffle(sentences)
    for number, sentence in enumerate(sentences[:_MAX_TASKS]):
        asked = ("Write a Python function for this: ", "Explain in simple words: ")[number % 2]
        yield [{"role": "user", "content": asked + sentence}]


@cache
def _of_packages() -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for name in _PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:
            for path in sorted(Path(spec.origin).parent.rglob("*.py")):
                found += _documented(path)
    return found


def _documented(path: Path) -> Iterator[tuple[str, str]]:
    """(source up to the end of the docstring, docstring) of each function in a file."""
    source = path.read_text(encoding="utf-8", errors="replace")
    all_lines = source.split("\n")
    for node in _functions_in(ast.parse(source)):
        docstring = ast.get_docstring(node) or ""
        if len(docstring) >= _MIN_DOCSTRING_CHARS:
            lines = all_lines[node.lineno - 1 : node.body[0].end_lineno]
            indent = len(lines[0]) - len(lines[0].lstrip())
            yield "\n".join(line[indent:] for line in lines), docstring


def _functions_in(module: ast.Module) -> Iterator[ast.FunctionDef]:
    """Functions and methods in the order of `ast.walk`, without its visit to every expression."""
    level: list[ast.AST] = [module]
    while level:
        yield from (node for node in level if isinstance(node, ast.FunctionDef))
        level = [child for node in level for child in ast.iter_child_nodes(node) if isinstance(child, _BLOCKS)]


def _replies() -> Iterator[Messages]:
    data = package_data("chatterbot_corpus", "data", "chatterbot-corpus")
    for path in sorted((data / "english").glob("*.yml")):
        for turns in yaml.safe_load(path.read_text())["conversations"]:
            for reply in turns[1:]:
                yield [{"role": "user", "content": str(reply)}]


def main() -> None:
    """Write the prompts."""
    prompts = training_prompts()
    Path(sys.argv[1]).write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in prompts))
    print(f"{len(prompts)} prompts")


if __name__ == "__main__":
    main()
