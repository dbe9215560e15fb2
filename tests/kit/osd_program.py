"""`osd serve` as a program of its own, all of whose processes are found again."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from actors.process.session import has_ended

_MARK = "marked"


@contextmanager
def program(state_dir: Path, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """`osd serve` in a session of its own, whose processes are told by an environment variable that they inherit."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OSD_")}
    # Inherited by all it starts, through XDG_STATE_HOME: an OSD_ variable of our own would be refused as unknown.
    environment |= {"XDG_STATE_HOME": str(state_dir / _MARK), "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "60"}
    command = [sys.executable, "-m", "serving.cli.app", "serve", "--port", "0", "--state-dir", state_dir, *arguments]
    process = subprocess.Popen(
        list(map(str, command)),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        with process:
            try:
                yield process
            finally:
                process.kill()
    finally:
        for one in started_by(state_dir):
            with suppress(psutil.NoSuchProcess):  # it ended by itself meanwhile
                one.kill()


def started_by(state_dir: Path) -> list[psutil.Process]:
    """Whatever still runs of a program, its orphans included."""
    found = []
    for process in psutil.process_iter():
        try:
            # redis-server writes its title over its environment, but it runs in the state folder.
            marked = process.environ().get("XDG_STATE_HOME") == str(state_dir / _MARK)
            if marked or Path(process.cwd()).is_relative_to(state_dir):
                found.append(process)
        except psutil.Error:
            continue
    return [process for process in found if not has_ended(process)]


def ready_url(process: subprocess.Popen[str]) -> str:
    """Reads what it prints until it says where it serves."""
    assert process.stdout
    for line in process.stdout:
        if match := re.search(r"admin page: (https?://\S+)/admin", line):
            return match[1]
    raise AssertionError(f"it ended: {process.stderr.read() if process.stderr else ''}")
