"""Tests wait for conditions, with a bound: an endless wait hides which one did not come true, a fixed one hopes."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

_TESTS = Path(__file__).parents[2]
_MAY_SLEEP = {
    "kit/waiting.py",  # between two looks at a condition
    "kit/left_processes.py",
    "unit/actors/engine/test_engine_actor.py",  # a step of a fake engine
    "unit/serving/test_impatient.py",  # longer than the time limit under test
}


@cache
def _calls() -> list[tuple[str, ast.Call, ast.Attribute]]:
    """Calls of methods in test files: where, the call, and what is called."""
    return [
        (path.relative_to(_TESTS).as_posix(), node, node.func)
        for path in sorted(_TESTS.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    ]


def test_nothing_sleeps_in_hope() -> None:
    sleeping = {
        file
        for file, _, method in _calls()
        if method.attr == "sleep" and isinstance(method.value, ast.Name) and method.value.id == "time"
    }
    assert sleeping <= _MAY_SLEEP


def test_no_thread_or_future_is_waited_for_without_end() -> None:
    endless = [
        f"{file}:{call.lineno}"
        for file, call, method in _calls()
        if method.attr in ("join", "result") and not call.args and not call.keywords
    ]
    assert not endless
