"""The processes of a POSIX session: its leader and all descendants, orphans included.

Descendants that began a session of their own, such as the process that compiles kernels, are not in it; they end by
themselves.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress

import psutil


def has_ended(process: psutil.Process) -> bool:
    """Whether a process has ended. One for which its parent has not waited yet (a zombie) has."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:  # it ended between the two calls
        return True


def session_processes(session: int) -> list[psutil.Process]:
    """The running processes of a session.

    Args:
        session: the session's id, which is its leader's process id.
    """
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session and not has_ended(process):
                found.append(process)
        except (psutil.Error, OSError):
            continue  # it ended meanwhile
    return found


def listening(session: int) -> Iterator[tuple[psutil.Process, str, int]]:
    """(process, address, port) of every TCP socket on which a process of the session listens."""
    for process in session_processes(session):
        try:
            connections = process.net_connections(kind="tcp")
        except psutil.Error:
            continue  # it ended meanwhile
        for connection in connections:
            if connection.status == psutil.CONN_LISTEN:
                yield process, connection.laddr.ip, connection.laddr.port


def kill_session(session: int, timeout_s: float = 10.0) -> None:
    """Kill all processes but the caller and wait for their end; repeats, since new ones may start meanwhile."""
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        left = [process for process in session_processes(session) if process.pid != os.getpid()]
        if not left:
            return
        for process in left:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, timeout=0.1)
