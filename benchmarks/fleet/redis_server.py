"""A redis-server that can be killed and started again."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Self

from osd.io.find_redis import find_redis_server


class RedisServer:
    """Started on entry, killed on exit.

    Args:
        folder: for its append-only file.
        port: where it listens, on 127.0.0.1.
    """

    def __init__(self, folder: Path, port: int) -> None:
        self._command = [str(find_redis_server()), "--port", str(port), "--bind", "127.0.0.1"]
        self._command += ["--appendonly", "yes", "--dir", str(folder)]
        self.address, self.url = f"127.0.0.1:{port}", f"redis://127.0.0.1:{port}/0"

    def start(self) -> None:
        """Start it."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)

    def kill(self) -> None:
        """Kill it."""
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
