"""Starts and stops an osd server for a benchmark as a user would: `osd serve` on a free loopback port."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import httpx


def free_port() -> int:
    """A loopback port that is free now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def osd_server(state_dir: Path, log_path: Path, flags: list[str], *, ready_s: float = 600.0) -> Iterator[str]:
    """Run `osd serve` until the block ends or the benchmark is terminated, also by SIGTERM; yields its base URL.

    Raises:
        SystemExit: it did not become ready; the message ends with the server's last output.
    """
    signal.signal(signal.SIGTERM, _unwind)
    port = free_port()
    command = [sys.executable, "-m", "serving.cli.app", "serve", "--port", str(port), "--state-dir", str(state_dir)]
    url = f"http://127.0.0.1:{port}"
    with log_path.open("w") as log:
        measured = os.environ | {"OSD_TARGET__WAIT_FOR_KERNELS": "true"}
        process = subprocess.Popen([*command, *flags], env=measured, stdout=log, stderr=subprocess.STDOUT)
        try:
            _wait_until_ready(process, url, log_path, ready_s)
            yield url
        finally:
            process.terminate()
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _unwind(number: int, _: object) -> NoReturn:
    """Raise SystemExit on SIGTERM, so that the server is stopped; by default SIGTERM would leave it running."""
    sys.exit(128 + number)


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log_path: Path, ready_s: float) -> None:
    deadline_s = time.monotonic() + ready_s
    while time.monotonic() < deadline_s:
        if process.poll() is not None:
            break
        try:
            if httpx.get(f"{url}/ready", timeout=2).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    tail = "\n".join(log_path.read_text().splitlines()[-15:])
    raise SystemExit(f"osd serve did not become ready; see {log_path}:\n{tail}")
