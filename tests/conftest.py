"""For every test: one thread for tensor work, an order, kernels compiled once, and no process left behind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.kit.kernel_builds import build_kernels
from tests.kit.left_processes import assert_none_is_left, mark_children

_ONE_SERVICE = ("tests/e2e/service/", "tests/e2e/cluster/")
"""Folders whose tests share one running service."""
_FIRST = ("e2e/cluster", "e2e/service", "e2e", "contract", "browser")
"""Folders whose tests wait long for other processes: first, so that no worker is left with one at the end."""

# Tiny operations by several threads on a shared machine only wait for each other.
torch.set_num_threads(1)
if not torch.cuda.is_available():
    # Triton's kernels are run by its interpreter; that is settled when triton is first imported.
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--build-kernels",
        action="store_true",
        help="compile kernels for this CPU before the first test, rather than in the tests that need them first",
    )


@pytest.fixture(scope="session", autouse=True)
def _no_process_is_left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    mark = mark_children()
    yield
    assert_none_is_left(mark, tmp_path_factory.getbasetemp())


def pytest_sessionstart(session: pytest.Session) -> None:
    is_worker = hasattr(session.config, "workerinput")
    if session.config.getoption("build_kernels") and not is_worker:
        build_kernels()


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


def _place(item: pytest.Item) -> int:
    folder = _folder(item)
    return _FIRST.index(folder) if folder in _FIRST else len(_FIRST)


def _folder(item: pytest.Item) -> str:
    return item.path.parent.relative_to(Path(__file__).parent).as_posix()
