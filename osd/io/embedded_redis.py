"""A private redis-server for users who run none: on a Unix socket, with a password and a memory limit, persistent."""

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
_LONGEST_SOCKET_PATH_BYTES = 100  # the system's limit is 108 bytes, on some systems 104

# Run as a program of its own (a preexec_fn may deadlock in a process with threads): asks the kernel to SIGKILL this
# process when the thread that started it ends (PR_SET_PDEATHSIG), checks that osd has not ended already, and becomes
# redis-server. SIGKILL loses nothing, since the append-only file is written before each reply; with `appendfsync
# everysec` that write could be delayed by a slow disk.
_LAUNCHER = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


class EmbeddedRedis:
    """A redis-server that ends when `stop` is called or this process ends, even by SIGKILL (on Linux).

    Its data stays on disk. Methods may be called from any thread.
    """

    def __init__(self, folder: Path, *, max_memory_bytes: int) -> None:
        """Prepare; nothing is started yet.

        Args:
            folder: For the append-only file, the log and the socket; one running osd at a time may use it.
            max_memory_bytes: At this much data the server refuses writes; it evicts nothing.
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
        """`unix://:password@/path?db=0`; fixed once started. It holds the password, so keep it out of logs."""
        return f"unix://:{self._password}@{quote(str(self._socket_folder / 'redis.sock'))}?db=0"

    @property
    def pid(self) -> int | None:
        """The server's process id; None while it is not running."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def start(self) -> None:
        """Start the server and wait until it answers; does nothing if it was started before.

        Raises:
            OsdError: no redis-server is installed, another osd uses the folder, or the server does not answer.
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
        """Restart the server if it died, with the same URL and data; True if it did. Never restarts a stopped one.

        Raises:
            OsdError: the restarted server does not answer.
        """
        with self._guard:
            if self._server is None or (self._process is not None and self._process.poll() is None):
                return False
            logger.warning("the embedded redis-server died; starting it again")
            self._launch(self._server)
            return True

    def stop(self) -> None:
        """Stop the server and unlock the folder; the data stays. Does nothing if the server is not running."""
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
        """Kill the server of an osd that was killed, if the kernel did not, so that no two write the same file."""
        try:
            leftover = psutil.Process(int((self._folder / "redis.pid").read_text()))
            if leftover.name().startswith("redis-server") and leftover.cwd() == str(self._folder):
                logger.warning("ending a redis-server that a killed osd left behind (process %d)", leftover.pid)
                leftover.kill()
                leftover.wait(_STOP_TIMEOUT_S)
        except (OSError, ValueError, psutil.NoSuchProcess, psutil.AccessDenied):
            pass  # no pid file, or the process is gone or belongs to another user

    def _launch(self, server: Path) -> None:
        """Start the process and wait until it answers."""
        # PR_SET_PDEATHSIG follows the *thread* that starts the child, so that thread must live until `_release`.
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
                start_new_session=True,  # Ctrl-C must not reach it: osd stops it last
            )
        assert process.stdin is not None
        # Settings go through standard input, so that the password is neither on a command line nor on disk.
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
