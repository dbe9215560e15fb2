"""Bounds on files, functions and rooms, so that whoever looks for something finds it at once and reads it whole."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from statistics import median
from typing import TypeGuard

import pytest
from pydantic import BaseModel

import osd
from osd.config.settings import Config

_ROOT = Path(osd.__file__).parents[1]
_PACKAGES = ("osd", "trainer", "actors", "serving")
_MAX_LINES, _MAX_MEDIAN_LINES, _MAX_FUNCTION_LINES, _MAX_STEP_LINES, _MAX_ROOM_MODULES = 400, 120, 60, 15, 12


@cache
def _modules() -> dict[Path, ast.Module]:
    """Every file of the packages, by its path from the root."""
    paths = [path for package in _PACKAGES for path in (_ROOT / package).rglob("*.py")]
    return {path.relative_to(_ROOT): ast.parse(path.read_text(encoding="utf-8")) for path in paths}


def _beside() -> list[Path]:
    """Every file of the tests and benchmarks, by its path from the root."""
    return [path.relative_to(_ROOT) for folder in ("tests", "benchmarks") for path in (_ROOT / folder).rglob("*.py")]


def _num_lines(path: Path) -> int:
    return len((_ROOT / path).read_text(encoding="utf-8").splitlines())


def test_what_is_installed_is_all_of_it() -> None:
    """Packages are listed by hand; one that is not listed is there in a checkout, and missing in an image."""
    listed = tomllib.loads((_ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    present = {".".join(path.parent.parts) for path in _modules() if path.name == "__init__.py"}
    assert set(listed) == present
    assert {".".join(path.parent.parts) for path in _modules()} <= present, "every folder with modules is a package"


def test_no_file_is_long() -> None:
    """Nor one of the tests and benchmarks."""
    long = {str(path): num for path in (*_modules(), *_beside()) if (num := _num_lines(path)) > _MAX_LINES}
    assert not long


def test_files_of_osd_are_mostly_short() -> None:
    lines = [_num_lines(path) for path in _modules() if path.parts[0] == "osd" and path.name != "__init__.py"]
    assert median(lines) < _MAX_MEDIAN_LINES


def _num_body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Without the signature (of a command, a table of options) and the docstring."""
    is_documented = ast.get_docstring(function) is not None and len(function.body) > 1
    return (function.end_lineno or 0) - function.body[is_documented].lineno + 1


def _functions(block: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """All functions in a block of statements; expressions, which hold none, are not visited."""
    for node in ast.iter_child_nodes(block):
        if isinstance(node, ast.stmt | ast.ExceptHandler | ast.match_case):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield node
            yield from _functions(node)


def test_no_function_outside_of_the_kernels_is_long() -> None:
    beside = ((path, ast.parse((_ROOT / path).read_text(encoding="utf-8"))) for path in _beside())
    long = {
        f"{path}: {node.name}": num
        for path, module in (*_modules().items(), *beside)
        if not path.is_relative_to("osd/kernels")
        for node in _functions(module)
        if (num := _num_body_lines(node)) > _MAX_FUNCTION_LINES
    }
    assert not long


def test_a_step_of_the_engine_is_read_at_a_glance() -> None:
    module = _modules()[Path("osd/engine/engine.py")]
    [step] = [node for node in ast.walk(module) if isinstance(node, ast.FunctionDef) and node.name == "step"]
    assert _num_body_lines(step) < _MAX_STEP_LINES


def test_a_package_says_in_one_sentence_what_lives_there() -> None:
    """And its `__init__` holds nothing else, so that to import one module is to import no other."""
    wrong = []
    for path, module in _modules().items():
        if path.name == "__init__.py":
            said = (ast.get_docstring(module) or "").rstrip()
            if len(module.body) != 1 or not said.endswith(".") or ". " in said.replace("\n", " "):
                wrong.append(str(path))
    assert not wrong


def test_no_room_is_crowded() -> None:
    rooms: dict[Path, int] = {}
    for path in _modules():
        if path.name != "__init__.py":
            rooms[path.parent] = rooms.get(path.parent, 0) + 1
    assert not {str(room): num for room, num in rooms.items() if num > _MAX_ROOM_MODULES}


def _is_section(kind: object) -> TypeGuard[type[BaseModel]]:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _sections(model: type[BaseModel]) -> list[type[BaseModel]]:
    """A model and the models of its fields, at any depth."""
    nested = [field.annotation for field in model.model_fields.values() if _is_section(field.annotation)]
    return [model, *(section for one in nested for section in _sections(one))]


@pytest.mark.parametrize("section", _sections(Config), ids=lambda section: section.__name__)
def test_every_setting_says_what_it_is(section: type[BaseModel]) -> None:
    assert (section.__doc__ or "").strip()
    fields = section.model_fields.items()
    assert not [name for name, field in fields if not _is_section(field.annotation) and not field.description]


def test_no_package_imports_tests() -> None:
    importing = []
    for path, module in _modules().items():
        for node in ast.walk(module):
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            if any(name.split(".")[0] in ("tests", "benchmarks", "pytest") for name in names):
                importing.append(str(path))
    assert not importing
