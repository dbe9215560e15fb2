"""Keeps a Ray driver running, and calls actors through it.

consumes: messages from the driver's process
waits for: a message; after a failed start, the pause before the next one
is unblocked by: a message, the end of the process, `close`
on failure: when the process ends, open calls fail with ActorAwayError, the rest of Ray is killed, and everything is
    started again, with growing pauses and without limit; only a failure of the first start is final
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

from actors.calls.handle import ActorAwayError, ActorHandle
from actors.calls.link import Answer, Call, Ended, Order, Ready, Stage
from actors.driver.driver_process import DriverProcess
from actors.process.event_log import EventLog
from osd.config.settings import Config
from osd.records.errors import OsdError
from osd.records.events import Event, EventKind
from osd.records.status import EngineStatus

_log = logging.getLogger(__name__)
_CLOSE_S = 25.0
"""Each of the three actors has five seconds to save its state; then Ray stops."""
Progress = Callable[[str, float], None]


class DriverKeeper:
    """Starts the driver's process, and restarts it when it ends.

    Args:
        config: the whole configuration.
        redis_url: the Redis of the outcome stream.
        start_process: starts the driver's process.
        first_pause_s: pause after a failed start; it doubles with each further failure.
        longest_pause_s: the longest such pause.
    """

    def __init__(
        self,
        config: Config,
        redis_url: str,
        *,
        start_process: Callable[[Order], DriverProcess] = DriverProcess,
        first_pause_s: float = 0.5,
        longest_pause_s: float = 60.0,
    ) -> None:
        self._config, self._redis_url, self._start_process = config, redis_url, start_process
        self._first_pause_s, self._longest_pause_s = first_pause_s, longest_pause_s
        self._events = EventLog()
        self._lock = threading.Lock()
        """Guards the next four attributes."""
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
        """The operator's last choice, passed to the actors at the next start."""

    def start(self, on_progress: Progress) -> EngineStatus:
        """Start Ray and the actors, and wait until the engine serves; returns the engine's status.

        Raises:
            OsdError: one line that says what is wrong and what to do.
        """
        self._on_progress = on_progress
        self._thread.start()
        return self._first.result()

    def close(self) -> None:
        """Stop the actors, Ray if osd started it, and the driver's process."""
        self._stopping.set()
        with self._lock:
            if self._process is not None:
                self._process.link.end()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def pid(self) -> int | None:
        """The driver's process id; None while there is no driver."""
        process = self._process
        return process.pid if process else None

    def events(self, limit: int) -> list[Event]:
        """The newest events, oldest first."""
        return self._events.newest(limit)

    def handle(self, actor: str) -> ActorHandle:
        """A handle to an actor ("engine", "distiller" or "supervisor") that stays valid across restarts."""
        return _Handle(partial(self._call, actor))

    def _call(self, actor: str, method: str, *args: Any) -> Future[Any]:
        answer: Future[Any] = Future()
        with self._lock:
            process, number = self._process, next(self._numbers)
            if process is None or not self._is_up:
                answer.set_exception(ActorAwayError("Ray is being started"))
                return answer
            self._open[number] = answer
        answer.add_done_callback(lambda _: self._forget(number))  # also if the caller cancelled it
        with suppress(OSError):  # the driver ended or hangs; then the link ends, and the call fails as an open one
            process.link.send(Call(number, actor, method, args))
        return answer

    def _run(self) -> None:
        try:
            self._restart_forever()
        except BaseException as error:
            if self._first.done():
                raise
            self._first.set_exception(error)  # raised by `start`, for instance SystemExit from the progress callback

    def _restart_forever(self) -> None:
        pause_s = self._first_pause_s
        while not self._stopping.is_set():
            reason, was_up = self._run_process()
            if self._stopping.is_set():
                break
            if not self._first.done():
                self._first.set_exception(OsdError(reason))
                return
            if was_up:
                self.num_restarts += 1
                pause_s = self._first_pause_s
                self._emit("restart", f"Ray is started again, and the actors with it: {reason}", actor="ray")
            else:
                self._emit("error", f"Ray cannot be started again: {reason}; next try in {pause_s:g} s", actor="ray")
                self._stopping.wait(pause_s)
                pause_s = min(2 * pause_s, self._longest_pause_s)
        if not self._first.done():
            self._first.set_exception(OsdError("stopped while starting"))

    def _run_process(self) -> tuple[str, bool]:
        """Run one driver process to its end: (why it ended, whether its engine had served)."""
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
                    self._resolve(message)
                elif isinstance(message, Ready):
                    was_up = self._serve(message.engine)
                elif isinstance(message, Stage) and not self._first.done():
                    self._on_progress(message.name, message.share)
                elif isinstance(message, Ended):
                    reason = message.reason
        except EOFError:
            pass
        except Exception as error:  # an unreadable message; a new driver may work
            _log.exception("Ray's driver is not understood")
            reason = f"Ray's driver is not understood: {error}"
        finally:
            self._fail_open_calls()
            # At `close`, actors that have served may have state to save; in a Ray that died nothing can be saved.
            process.close(_CLOSE_S if was_up and self._stopping.is_set() else 0.0)
            with self._lock:
                self._process = None
        return reason, was_up

    def _serve(self, engine: EngineStatus) -> bool:
        with self._lock:
            self._is_up = True
        if self._first.done():
            self._emit("restart", f"Ray and the actors are back (restart {self.num_restarts})", actor="ray")
        else:
            self._first.set_result(engine)
        return True

    def _resolve(self, answer: Answer) -> None:
        with self._lock:
            future = self._open.get(answer.number)
        if future is None or not future.set_running_or_notify_cancel():
            return  # the caller cancelled it
        if answer.error is None:
            future.set_result(answer.value)
        else:
            future.set_exception(answer.error)

    def _forget(self, number: int) -> None:
        with self._lock:
            self._open.pop(number, None)

    def _fail_open_calls(self) -> None:
        """Fail all open calls."""
        with self._lock:
            self._is_up = False
            left, self._open = self._open, {}
        for future in left.values():
            if future.set_running_or_notify_cancel():
                future.set_exception(ActorAwayError("Ray died"))

    def _emit(self, kind: EventKind, message: str, **data: Any) -> None:
        _log.warning("%s", message)
        self._events.add(Event(at_s=time.time(), kind=kind, message=message, data=data))


class _Handle:
    def __init__(self, call: Callable[..., Future[Any]]) -> None:
        self.call = call
