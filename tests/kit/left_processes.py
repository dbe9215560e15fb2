"""Servers that tests start must end with them: what is left of a session is found by what its processes inherited."""

from __future__ import annotations

import os
import time
import uuid
from pathlib import Path

import psutil

from actors.process.session import has_ended

_MARK = "TESTS_SESSION"
_SERVERS = ("redis-server", "raylet", "gcs_server", "ray::", "actors.driver", "serving.cli")
"""Parts of the command lines of what must not outlive a session."""
_ENDING_S = 20.0


def mark_children() -> str:
    """Have every process that this one starts from here on inherit a mark; returns it."""
    os.environ[_MARK] = mark = uuid.uuid4().hex
    return mark


def assert_none_is_left(mark: str, folder: Path) -> None:
    """Fails if a server of this session still runs some seconds after its last test.

    Args:
        mark: what its processes inherited.
        folder: for temporary files: redis-server writes over its environment, but runs in its folder.
    """
    deadline_s = time.monotonic() + _ENDING_S
    while left := servers_left(mark, folder):
        assert time.monotonic() < deadline_s, f"still running after the last test: {left}"
        time.sleep(0.1)


def servers_left(mark: str, folder: Path) -> list[str]:
    """The command lines of servers that run."""
    found = []
    for process in psutil.process_iter():
        try:
            line = " ".join(process.cmdline())
            if not any(server in line for server in _SERVERS) or has_ended(process):
                continue
            if process.environ().get(_MARK) == mark or Path(process.cwd()).is_relative_to(folder):
                found.append(f"{process.pid} {line[:200]}")
        except psutil.Error:  # it ended meanwhile, or is somebody else's
            continue
    return found
