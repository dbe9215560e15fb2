"""A private redis-server, for who has none running: on a Unix socket, with a password, bounded, and kept on disk."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO
from urllib.parse import quote

import psutil
import redis

from osd.io.find_redis import find_redis_server
from osd.io.redis_client import connect
from osd.records.errors import OsdError

logger = logging.getLogger(__name__)

_START_TIMEOUT_S = 30.0
_STOP_TIMEOUT_S = 5.0
_PING_INTERVAL_S = 0.02
_LONGEST_SOCKET_PATH_BYTES = 100  # the kernel's limit is 108, on some systems 104

# Asks the kernel to kill this process when the thread that made it is gone (PR_SET_PDEATHSIG, SIGKILL; the append-only
# file is written before each reply, so nothing is lost; `appendfsync everysec` would put that off while the disk is
# slow), sees that it is not gone already, and becomes redis-server.
# Run as a program rather than as a preexec_fn, which may deadlock in a process with threads.
_LAUNCHER = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


class EmbeddedRedis:
    """A redis-server that lives no longer than this object and this process, even when it is killed (on Linux).

    Its data outlives both. Methods may be called from any thread.
    """

    def __init__(self, folder: Path, *, max_memory_bytes: int) -> None:
        """Prepare; nothing is started yet.

        Args:
            folder: For the append-only file, the log and the socket; one running osd at a time may use it.
            max_memory_bytes: When it holds this much it refuses writes, and evicts nothing.
        """
        self._folder = folder.resolve()
        self._max_memory_bytes = max_memory_bytes
        self._password = secrets.token_hex(32)
        self._guard = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._server: Path | None = None
        self._folder_lock: IO[bytes] | None = None
        self._owner: ThreadPoolExecutor | None = None
        self._socket_folder = self._folder

    @property
    def url(self) -> str:
        """`unix://:password@/path?db=0`; fixed once started. Holds the password: not for logs."""
        return f"unix://:{self._password}@{quote(str(self._socket_folder / 'redis.sock'))}?db=0"

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def start(self) -> None:
        """Start it and wait until it answers; does nothing when it was started before.

        Raises:
            OsdError: there is no redis-server, another osd uses the folder, or it does not come up.
        """
        with self._guard:
            if self._folder_lock is not None:
                return
            self._server = find_redis_server()
            self._folder_lock = self._lock_folder()
            self._owner = ThreadPoolExecutor(1, thread_name_prefix="osd-redis-owner")
            try:
                self._end_leftover()
                if len(os.fsencode(self._folder / "redis.sock")) > _LONGEST_SOCKET_PATH_BYTES:
                    self._socket_folder = Path(tempfile.mkdtemp(prefix="osd-redis-"))
                self._launch(self._server)
            except BaseException:
                self._release()
                raise

    def ensure_running(self) -> bool:
        """Start it again if it died, with the same URL and data. True when that was needed; never starts a stopped one.

        Raises:
            OsdError: it does not come up again.
        """
        with self._guard:
            if self._server is None or (self._process is not None and self._process.poll() is None):
                return False
            logger.warning("the embedded redis-server died; starting it again")
            self._launch(self._server)
            return True

    def stop(self) -> None:
        """Stop it and let the folder go; the data stays. Does nothing when it is not running."""
        with self._guard:
            if self._process is not None:
                self._process.terminate()
                try:
                    self._process.wait(_STOP_TIMEOUT_S)
                except subprocess.TimeoutExpired:
                    self._process.kill()
                    self._process.wait()
            self._release()

    def _release(self) -> None:
        self._process = self._server = None
        if self._owner is not None:
            self._owner.shutdown()
            self._owner = None
        if self._socket_folder != self._folder:
            shutil.rmtree(self._socket_folder, ignore_errors=True)
            self._socket_folder = self._folder
        if self._folder_lock is not None:
            self._folder_lock.close()
            self._folder_lock = None

    def _lock_folder(self) -> IO[bytes]:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._folder.chmod(0o700)  # prompts are private
            lock = (self._folder / "lock").open("wb")
        except OSError as error:
            raise OsdError(f"cannot use {self._folder} for Redis: {error.strerror}; choose another state_dir") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            raise OsdError(
                f"{self._folder} is in use by another running osd; stop it, or give this one a state_dir of its own"
            ) from None
        return lock

    def _end_leftover(self) -> None:
        """End the server of an osd that was killed where the kernel did not do so, lest two write one file."""
        try:
            leftover = psutil.Process(int((self._folder / "redis.pid").read_text()))
            if leftover.name().startswith("redis-server") and leftover.cwd() == str(self._folder):
                logger.warning("ending a redis-server that a killed osd left behind (process %d)", leftover.pid)
                leftover.kill()
                leftover.wait(_STOP_TIMEOUT_S)
        except (OSError, ValueError, psutil.NoSuchProcess, psutil.AccessDenied):
            pass  # no pid file, or its process is gone or somebody else's

    def _launch(self, server: Path) -> None:
        """Start the process and wait until it answers."""
        # The kernel ties the child's life to the *thread* that made it, so that is one that lasts until `_release`.
        assert self._owner is not None
        try:
            process = self._owner.submit(self._spawn, server).result()
        except OSError as error:
            raise OsdError(f"cannot start {server}: {error.strerror}") from None
        self._process = process
        try:
            self._wait_until_it_answers(process)
        except BaseException:
            process.kill()
            process.wait()
            raise

    def _wait_until_it_answers(self, process: subprocess.Popen[bytes]) -> None:
        deadline_s = time.monotonic() + _START_TIMEOUT_S
        client = connect(self.url)
        try:
            while process.poll() is None and time.monotonic() < deadline_s:
                try:
                    client.ping()
                    return
                except redis.RedisError:  # not listening yet, or loading its data
                    time.sleep(_PING_INTERVAL_S)
        finally:
            client.close()
        raise OsdError(f"redis-server does not come up; {self._log_path} says: {self._log_tail()}")

    def _spawn(self, server: Path) -> subprocess.Popen[bytes]:
        command = [str(server), "-"]
        if sys.platform == "linux":
            command = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), *command]
        with self._log_path.open("wb") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=self._folder,
                umask=0o077,
                start_new_session=True,  # so that Ctrl-C ends osd, which ends this last
            )
        assert process.stdin is not None
        # By standard input, so that the password is neither on a command line nor on disk.
        with contextlib.suppress(BrokenPipeError), process.stdin as stdin:
            stdin.write(self._settings().encode())
        return process

    def _settings(self) -> str:
        folder, socket = (
            '"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"'
            for path in (self._folder, self._socket_folder / "redis.sock")
        )
        return f"""
            port 0
            unixsocket {socket}
            unixsocketperm 700
            requirepass {self._password}
            dir {folder}
            pidfile redis.pid
            daemonize no
            loglevel warning
            databases 1
            maxmemory {self._max_memory_bytes}
            maxmemory-policy noeviction
            save ""
            appendonly yes
            appendfsync no
            aof-load-truncated yes
            auto-aof-rewrite-min-size 32mb
        """

    @property
    def _log_path(self) -> Path:
        return self._folder / "redis.log"

    def _log_tail(self) -> str:
        try:
            return " | ".join(self._log_path.read_text(errors="replace").splitlines()[-3:]) or "nothing"
        except OSError as error:
            return f"nothing ({error.strerror})"
