"""For every test: one thread for tensor work, an order, kernels compiled once, and no process left behind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.kit.kernel_builds import build_in_background, finish_builds
from tests.kit.left_processes import assert_none_is_left, mark_children

_ONE_SERVICE = ("tests/e2e/service/",)
"""Folders whose tests share one running service."""
_FIRST = ("e2e/service", "e2e", "contract", "browser")
"""Folders whose tests mostly wait for other processes: kernels can be compiled meanwhile."""
_NEED_KERNELS = (
    "statistical",
    *(f"unit/{room}" for room in ("actors", "assembly", "benchmarks", "drafters", "engine", "kernels", "models")),
    *(f"unit/{room}" for room in ("speculation", "swap", "trainer", "verify")),
)
"""Folders whose tests call compiled kernels: they come last."""

# Tiny operations by several threads on a shared machine only wait for each other.
torch.set_num_threads(1)
if not torch.cuda.is_available():
    # Triton's kernels are run by its interpreter; that is settled when triton is first imported.
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--build-kernels",
        action="store_true",
        help="compile kernels for this CPU in the background; tests that call them come last and wait for that",
    )


@pytest.fixture(scope="session", autouse=True)
def _no_process_is_left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    mark = mark_children()
    yield
    assert_none_is_left(mark, tmp_path_factory.getbasetemp())


def pytest_sessionstart(session: pytest.Session) -> None:
    is_worker = hasattr(session.config, "workerinput")
    if session.config.getoption("build_kernels") and not is_worker:
        session.config.stash[_builds] = stack = ExitStack()
        stack.enter_context(build_in_background())


def pytest_sessionfinish(session: pytest.Session) -> None:
    if stack := session.config.stash.get(_builds, None):
        stack.close()


_builds = pytest.StashKey[ExitStack]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order tests by what they need."""
    items.sort(key=_place)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Of several workers, let one have all tests of a file, or of a folder whose tests share a service."""
    from xdist.scheduler.loadscope import LoadScopeScheduling

    scheduling: Any = LoadScopeScheduling(config, log)
    scheduling._split_scope = _scope
    return scheduling


def _scope(nodeid: str) -> str:
    file = nodeid.partition("::")[0]
    return next((folder for folder in _ONE_SERVICE if file.startswith(folder)), file)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Outside of the test's time limit, wait for the kernels that it calls."""
    if item.config.getoption("build_kernels") and _folder(item) in _NEED_KERNELS:
        finish_builds()
    return (yield)


def _place(item: pytest.Item) -> int:
    folder = _folder(item)
    return _FIRST.index(folder) if folder in _FIRST else len(_FIRST) + (folder in _NEED_KERNELS)


def _folder(item: pytest.Item) -> str:
    return item.path.parent.relative_to(Path(__file__).parent).as_posix()
