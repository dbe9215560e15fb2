"""One process of the Ray driver (`driver.py`), as the server controls it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import actors
from actors.calls.link import Link, Order
from actors.cluster.local_ray import driver_environment
from actors.process.session import kill_session, session_processes


class DriverProcess:
    """Starts a driver process in its own POSIX session, by which its processes are found; it gets no terminal signals.

    Args:
        order: what the driver is to start.
    """

    def __init__(self, order: Order) -> None:
        environment = driver_environment(os.environ)
        sources = str(Path(actors.__file__).parents[1])
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (sources, environment.get("PYTHONPATH"))))
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                # -P: modules in the current folder must not shadow a library's modules of the same name.
                [sys.executable, "-P", "-m", "actors.driver.driver", str(theirs.fileno())],
                env=environment,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self.link = Link(ours)
        with suppress(OSError):  # it has ended already, which `receive` will report
            self.link.send(order)

    @property
    def pid(self) -> int:
        """The driver's process id, which is also the session's id."""
        return self._process.pid

    def close(self, patience_s: float) -> None:
        """Let the driver stop everything, at most `patience_s`; then kill what is left of its session."""
        self.link.end()
        deadline_s = time.monotonic() + patience_s
        while time.monotonic() < deadline_s and (self._process.poll() is None or session_processes(self.pid)):
            time.sleep(0.02)
        kill_session(self.pid)
        self._process.wait()
        self.link.close()
