"""One log for all processes of a service, as text or JSON lines.

On one machine it is a file: the server calls `start_logs`, which puts the settings into the environment; processes that
it starts inherit them and call `join_logs`. Each record is one write to a file opened for appending, so that processes
do not mix their lines. In a cluster, replicas call `log_to` (see `actors/cluster/replica_logs.py`).
Records carry the request's id where there is one. Nothing logs prompts or answers.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from logging.handlers import WatchedFileHandler
from pathlib import Path

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""The id of the HTTP request that is being handled."""
_VARIABLE = "LOG_OF_OSD_SERVICE"
_PACKAGES = ("osd", "actors", "trainer", "serving")


class JsonLines(logging.Formatter):
    """One JSON object a record.

    Args:
        process: what the process is called.
        node: the cluster's node that it runs on; empty: there is one machine only.
    """

    def __init__(self, process: str, node: str = "") -> None:
        super().__init__()
        self._of = {"process": process, **({"node": node} if node else {})}

    def format(self, record: logging.LogRecord) -> str:
        """The record's line."""
        fields = {
            "at": _utc(record),
            "level": record.levelname.lower(),
            **self._of,
            "pid": record.process,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if current := request_id.get():
            fields["request_id"] = current
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False)


class TextLines(logging.Formatter):
    """Time, level, process, logger, message; an exception's traceback follows on lines of its own.

    Args:
        process: see `JsonLines`.
        node: see `JsonLines`.
    """

    def __init__(self, process: str, node: str = "") -> None:
        super().__init__()
        self._process = f"{process}@{node}" if node else process

    def format(self, record: logging.LogRecord) -> str:
        """The record's lines."""
        current = request_id.get()
        of = f" [{current}]" if current else ""
        line = f"{_utc(record)} {record.levelname:<7} {self._process} {record.name}{of}: {record.getMessage()}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _utc(record: logging.LogRecord) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"


class BoundedFile(WatchedFileHandler):
    """Appends, and renames a file that has grown too large; other processes notice that, and open the new one."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        super().__init__(path, encoding="utf-8", delay=True)
        self._path, self._max_bytes = path, max_bytes

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record, or nothing: whoever logs must not be disturbed by a full disk, or a folder that is gone."""
        with suppress(OSError):
            if self._path.stat().st_size > self._max_bytes:
                self._turn_over()
        with suppress(OSError):  # the library looks for another file under the name before it handles errors
            super().emit(record)

    def close(self) -> None:
        """Close the file, also where the last records cannot be written."""
        with suppress(OSError):
            super().close()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the library's name
        """Do not report a record that cannot be written; on a full disk that would fill the terminal."""

    def _turn_over(self) -> None:
        with self._path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self._path.stat().st_size > self._max_bytes:  # another process may have been first
                self._path.replace(self._path.with_suffix(self._path.suffix + ".1"))


@contextmanager
def start_logs(path: Path, process: str, *, level: str, lines: str, max_bytes: int) -> Iterator[None]:
    """Log to a file, and warnings to the terminal, until the context is left.

    Args:
        path: of the file.
        process: what this process is called in it.
        level: the least level: `debug`, `info`, `warning` or `error`.
        lines: `text` or `json`.
        max_bytes: a file that has grown so large is renamed.
    """
    root = logging.getLogger()
    before = list(root.handlers)
    os.environ[_VARIABLE] = json.dumps([str(path.absolute()), level, lines, max_bytes])
    join_logs(process)
    terminal = logging.StreamHandler(sys.stderr)
    terminal.setLevel(logging.DEBUG if level == "debug" else logging.WARNING)
    terminal.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    root.addHandler(terminal)
    try:
        yield
    finally:
        os.environ.pop(_VARIABLE, None)
        for handler in [one for one in root.handlers if one not in before]:
            root.removeHandler(handler)
            handler.close()


def join_logs(process: str) -> None:
    """Log to the file of the service that started this process; without one, logging stays as it is."""
    if _VARIABLE not in os.environ:
        return
    path, level, lines, max_bytes = json.loads(os.environ[_VARIABLE])
    root = logging.getLogger()
    for other in [one for one in root.handlers if isinstance(one, BoundedFile)]:
        root.removeHandler(other)
    log_to([BoundedFile(Path(path), max_bytes)], process, level=level, lines=lines)


def log_to(handlers: Iterable[logging.Handler], process: str, *, level: str, lines: str, node: str = "") -> None:
    """Have handlers take what this process logs.

    Args:
        handlers: get a formatter here.
        process: what this process is called.
        level: see `start_logs`.
        lines: see `start_logs`.
        node: see `JsonLines`.
    """
    formatter = JsonLines(process, node) if lines == "json" else TextLines(process, node)
    for handler in handlers:
        handler.setFormatter(formatter)
        logging.getLogger().addHandler(handler)
    for package in _PACKAGES:  # libraries below warnings say what must not be in a log, such as the URLs they call
        logging.getLogger(package).setLevel(level.upper())
