"""Where the replicas of the Ray Serve application log to: all of them into one file, which the supervisor writes.

Each replica also writes its records to its standard error, which Ray keeps in its session's folder on the node. So the
records of a process that dies before it could send them, or while there is no supervisor, are there.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from pathlib import Path

from ray import serve
from ray.util import get_node_ip_address

from actors.calls.by_serve import SUPERVISOR, ask_by_serve
from osd.config.paths import log_path
from osd.config.settings import Config
from osd.machine.log_sender import LogSender
from osd.machine.logs import BoundedFile, log_to

_SEND_TIMEOUT_S = 5.0


def join_cluster_logs(deployment: str, config: Config) -> None:
    """Have the calling replica log as section `log` says: to its standard error, and to the supervisor."""
    start_replica_logs(deployment, config, LogSender(_send))


def start_replica_logs(deployment: str, config: Config, *others: logging.Handler) -> None:
    """Have the calling replica log to its standard error, and to other handlers."""
    process = f"{deployment}-{serve.get_replica_context().replica_id.unique_id}"
    handlers = [logging.StreamHandler(sys.__stderr__), *others]
    log_to(handlers, process, level=config.log.level, lines=config.log.format, node=get_node_ip_address())


class LogOfReplicas:
    """The file of all replicas' records. Records of one replica are in their order; those of several come in batches.

    Args:
        config: sections `log` and `state_dir` say where it is.
    """

    def __init__(self, config: Config) -> None:
        self.path = Path(config.log.file) if config.log.file else log_path(config.state_dir)
        self._max_bytes = config.log.max_bytes
        self._file: BoundedFile | None = None
        """Takes whole lines."""
        self.problem = ""
        """Why there is no file; empty if there is one."""
        try:
            self._file = BoundedFile(self.path, self._max_bytes)
        except OSError as error:
            self.problem = f"the log of all replicas is not kept: {error}; set log.file to a path that can be written"

    def handlers(self) -> list[logging.Handler]:
        """For the records of the process that keeps the file."""
        return [BoundedFile(self.path, self._max_bytes)] if self._file is not None else []

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def write(self, lines: Iterable[str]) -> None:
        """Append lines that other replicas formatted."""
        if self._file is not None:
            for line in lines:
                self._file.handle(logging.makeLogRecord({"msg": line}))


def _send(lines: list[str]) -> None:
    ask_by_serve(SUPERVISOR, "take_log", lines, timeout_s=_SEND_TIMEOUT_S)
