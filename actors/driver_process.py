"""One life of the Ray driver's process (`driver.py`), as the server sees it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import actors
from actors.link import Link, Order
from actors.local_ray import driver_environment
from actors.session import kill_session, session_processes


class DriverProcess:
    """Starts it, in a POSIX session of its own: its processes are known by that, and no signal of a terminal comes.

    Args:
        order: what it starts.
    """

    def __init__(self, order: Order) -> None:
        environment = driver_environment(os.environ, is_local=not order.config.cluster.address)
        sources = str(Path(actors.__file__).parents[1])
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (sources, environment.get("PYTHONPATH"))))
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                # -P: no module of the folder that osd was started in goes before a library's of the same name.
                [sys.executable, "-P", "-m", "actors.driver", str(theirs.fileno())],
                env=environment,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self.link = Link(ours)
        with suppress(OSError):  # it has ended already: whoever receives from it will see
            self.link.send(order)

    @property
    def pid(self) -> int:
        """Of the driver; also the id of the session."""
        return self._process.pid

    def close(self, patience_s: float) -> None:
        """Let it stop everything, for so long at most; then kill what is left of it and of all it started."""
        self.link.end()
        deadline_s = time.monotonic() + patience_s
        while time.monotonic() < deadline_s and (self._process.poll() is None or session_processes(self.pid)):
            time.sleep(0.02)
        kill_session(self.pid)
        self._process.wait()
        self.link.close()
