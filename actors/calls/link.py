"""The messages between the server and the Ray driver, and the pipe that carries them."""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
import struct
import threading
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from osd.config.settings import Config
from osd.records.status import EngineStatus

_SEND_TIMEOUT_S = 10


@dataclass(frozen=True, slots=True)
class Order:
    """To the driver, first: what to start."""

    config: Config
    redis_url: str
    training_paused: bool | None
    """The operator's choice before Ray was restarted; None if none was made."""


@dataclass(frozen=True, slots=True)
class Stage:
    """From the driver during its start: the stage that begins."""

    name: str
    share: float
    """Share of the whole start that is done, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Ready:
    """From the driver: the engine serves, and all actors can be called."""

    engine: EngineStatus


@dataclass(frozen=True, slots=True)
class Ended:
    """From the driver, last: why it ends."""

    reason: str


@dataclass(frozen=True, slots=True)
class Call:
    """To the driver: call an actor's method."""

    number: int
    actor: str
    method: str
    args: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """From the driver: the result of a call, by the call's number; `error` is None if it returned."""

    number: int
    value: Any
    error: BaseException | None


class Link:
    """One end of the pipe. Any thread may send; one thread receives.

    Args:
        end: one of a pair of connected stream sockets.
    """

    def __init__(self, end: socket.socket) -> None:
        end.settimeout(None)
        # A send blocks only if the other process has stopped reading and its buffer is full: then it hangs.
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", _SEND_TIMEOUT_S, 0))
        self._end = end
        self._connection = Connection(os.dup(end.fileno()))
        self._lock = threading.Lock()

    def send(self, message: object) -> None:
        """Send one message.

        Raises:
            OSError: the other process has ended or hangs.
        """
        data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        with self._lock:
            try:
                self._connection.send_bytes(data)
            except OSError:
                self.end()  # part of the message may have been sent, so the stream is unusable
                raise

    def receive(self) -> Any:
        """The next message.

        Raises:
            EOFError: either process ended the connection.
        """
        try:
            return pickle.loads(self._connection.recv_bytes())
        except OSError as error:
            raise EOFError(str(error)) from None

    def end(self) -> None:
        """End the connection: `receive` raises EOFError in both processes, also if it is waiting."""
        with contextlib.suppress(OSError):
            self._end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket, once no thread receives any more."""
        self.end()
        with self._lock:
            self._connection.close()
            self._end.close()
