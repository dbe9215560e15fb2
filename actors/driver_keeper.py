"""Keeps a Ray driver running, and calls actors through it.

consumes: what the driver's process sends
waits for: that; after a failed start, the pause before the next one
is unblocked by: a message; the process's end; `close`
on failure: when the process ends, open calls fail with ActorAwayError, what is left of Ray is killed, and everything
    is started anew, for as long as it takes, with growing pauses; only the first start is not repeated
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any

from actors.driver_process import DriverProcess
from actors.event_log import EventLog
from actors.handle import ActorAwayError, ActorHandle
from actors.link import Answer, Call, Ended, Order, Ready, Stage
from osd.config.settings import Config
from osd.records.errors import OsdError
from osd.records.events import Event, EventKind
from osd.records.status import EngineStatus

_log = logging.getLogger(__name__)
_MIN_PAUSE_S = 0.5
_MAX_PAUSE_S = 60.0
_CLOSE_S = 25.0
"""Three actors get five seconds each to bring to safety what they have; Ray ends after them."""
Progress = Callable[[str, float], None]


class DriverKeeper:
    """Starts the driver's process, and starts it again when it ends.

    Args:
        config: everything.
        redis_url: where outcomes go.
        start_process: starts the process.
    """

    def __init__(
        self, config: Config, redis_url: str, *, start_process: Callable[[Order], DriverProcess] = DriverProcess
    ) -> None:
        self._config, self._redis_url, self._start_process = config, redis_url, start_process
        self._events = EventLog()
        self._lock = threading.Lock()
        """Of the next four."""
        self._process: DriverProcess | None = None
        self._is_up = False
        self._open: dict[int, Future[Any]] = {}
        self._numbers = itertools.count()
        self._first: Future[EngineStatus] = Future()
        self._on_progress: Progress = lambda stage, share: None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="osd-driver-keeper", daemon=True)
        self.num_restarts = 0
        self.training_paused: bool | None = None
        """What the operator wants: told to the actors of the next start."""

    def start(self, on_progress: Progress) -> EngineStatus:
        """Start Ray and the actors, and wait until the engine serves; returns its status.

        Raises:
            OsdError: one line that says what is wrong and what to do.
        """
        self._on_progress = on_progress
        self._thread.start()
        return self._first.result()

    def close(self) -> None:
        """Stop the actors, Ray if it is ours, and the process."""
        self._stopping.set()
        with self._lock:
            if self._process is not None:
                self._process.link.end()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def pid(self) -> int | None:
        """The driver's process id; None between two."""
        process = self._process
        return process.pid if process else None

    def events(self, limit: int) -> list[Event]:
        """The newest events, oldest first."""
        return self._events.newest(limit)

    def handle(self, actor: str) -> ActorHandle:
        """Calls an actor ("engine", "distiller" or "supervisor"), also across restarts."""
        return _Handle(partial(self._call, actor))

    def _call(self, actor: str, method: str, *args: Any) -> Future[Any]:
        answer: Future[Any] = Future()
        with self._lock:
            process, number = self._process, next(self._numbers)
            if process is None or not self._is_up:
                answer.set_exception(ActorAwayError("Ray is being started"))
                return answer
            self._open[number] = answer
        answer.add_done_callback(lambda _: self._forget(number))  # also when who asked has given up
        with suppress(OSError):  # it has ended, or is stuck: then the link ends, and `_leave` settles the call
            process.link.send(Call(number, actor, method, args))
        return answer

    def _run(self) -> None:
        try:
            self._keep()
        except BaseException as error:
            if self._first.done():
                raise
            self._first.set_exception(error)  # `start` waits for it: SystemExit, say, where nobody reads the progress

    def _keep(self) -> None:
        pause_s = _MIN_PAUSE_S
        while not self._stopping.is_set():
            reason, was_up = self._live()
            if self._stopping.is_set():
                break
            if not self._first.done():
                self._first.set_exception(OsdError(reason))
                return
            if was_up:
                self.num_restarts += 1
                pause_s = _MIN_PAUSE_S
                self._tell("restart", f"Ray is started again, and the actors with it: {reason}", actor="ray")
            else:
                self._tell("error", f"Ray cannot be started again: {reason}; next try in {pause_s:g} s", actor="ray")
                self._stopping.wait(pause_s)
                pause_s = min(2 * pause_s, _MAX_PAUSE_S)
        if not self._first.done():
            self._first.set_exception(OsdError("stopped while starting"))

    def _live(self) -> tuple[str, bool]:
        """One life of the process: (why it ended, whether it had served)."""
        was_up, reason = False, "Ray's driver ended without a word"
        try:
            process = self._start_process(Order(self._config, self._redis_url, self.training_paused))
        except OSError as error:
            return f"Ray's driver does not start: {error}", False
        with self._lock:
            self._process = process
        try:
            while not self._stopping.is_set():
                message = process.link.receive()
                if isinstance(message, Answer):
                    self._settle(message)
                elif isinstance(message, Ready):
                    was_up = self._serve(message.engine)
                elif isinstance(message, Stage) and not self._first.done():
                    self._on_progress(message.name, message.share)
                elif isinstance(message, Ended):
                    reason = message.reason
        except EOFError:
            pass
        except Exception as error:  # a message that cannot be read: the next driver may do better
            _log.exception("Ray's driver is not understood")
            reason = f"Ray's driver is not understood: {error}"
        finally:
            self._leave()
            # One that served may have something to bring to safety, unless its Ray is dead.
            process.close(_CLOSE_S if was_up and self._stopping.is_set() else 0.0)
            with self._lock:
                self._process = None
        return reason, was_up

    def _serve(self, engine: EngineStatus) -> bool:
        with self._lock:
            self._is_up = True
        if self._first.done():
            self._tell("restart", f"Ray and the actors are back (restart {self.num_restarts})", actor="ray")
        else:
            self._first.set_result(engine)
        return True

    def _settle(self, answer: Answer) -> None:
        with self._lock:
            future = self._open.get(answer.number)
        if future is None or not future.set_running_or_notify_cancel():
            return  # who asked has gone
        if answer.error is None:
            future.set_result(answer.value)
        else:
            future.set_exception(answer.error)

    def _forget(self, number: int) -> None:
        with self._lock:
            self._open.pop(number, None)

    def _leave(self) -> None:
        """Nothing open will be answered any more."""
        with self._lock:
            self._is_up = False
            left, self._open = self._open, {}
        for future in left.values():
            if future.set_running_or_notify_cancel():
                future.set_exception(ActorAwayError("Ray died"))

    def _tell(self, kind: EventKind, message: str, **data: Any) -> None:
        _log.warning("%s", message)
        self._events.add(Event(at_s=time.time(), kind=kind, message=message, data=data))


class _Handle:
    def __init__(self, call: Callable[..., Future[Any]]) -> None:
        self.call = call
