"""Servers that outlive a session of tests are found, whichever way they are told by."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.kit.left_processes import mark_children, servers_left

MARK = "TESTS_SESSION"
Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a process that waits, with these words in its command line."""
    started = []

    def start(*words: str, cwd: Path | None = None, **environment: str) -> subprocess.Popen[bytes]:
        inherited = {name: value for name, value in os.environ.items() if name != MARK}
        command = [sys.executable, "-c", "print('up', flush=True); input()", *words]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        process = subprocess.Popen(command, cwd=cwd, env=inherited | environment, **pipes)  # type: ignore[call-overload]
        started.append(process)
        assert process.stdout.readline() == b"up\n"
        return process  # type: ignore[no-any-return]

    yield start
    for process in started:
        process.kill()
        process.communicate(timeout=20)


@pytest.fixture
def mark(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(MARK, os.environ[MARK])  # restored after the test
    return mark_children()


def test_a_server_with_the_mark_is_found_until_it_ends(start: Start, mark: str, tmp_path: Path) -> None:
    assert servers_left(mark, tmp_path) == []
    process = start("raylet", TESTS_SESSION=mark)
    [line] = servers_left(mark, tmp_path)
    assert line.startswith(f"{process.pid} ") and "raylet" in line
    process.kill()
    process.wait(20)
    assert servers_left(mark, tmp_path) == []


def test_a_server_in_the_sessions_folder_is_found(start: Start, mark: str, tmp_path: Path) -> None:
    """redis-server writes its title over its environment."""
    folder = tmp_path / "redis"
    folder.mkdir()
    process = start("redis-server", cwd=folder)
    [line] = servers_left(mark, tmp_path)
    assert line.startswith(f"{process.pid} ")


def test_other_processes_are_left_alone(start: Start, mark: str, tmp_path: Path) -> None:
    start("raylet", TESTS_SESSION="another session's")
    start("a tool", cwd=tmp_path, TESTS_SESSION=mark)
    assert servers_left(mark, tmp_path) == []
