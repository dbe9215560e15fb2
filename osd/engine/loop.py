"""The thread that owns an engine; other threads use it through a queue of commands.

consumes: commands (submit, cancel, call), in order, between two steps
waits for: a command, or work in the engine
is unblocked by: `submit`, `cancel`, `call`, `stop`
on failure: a step that raises fails the queries in the engine, is logged, and the loop continues
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from osd.engine.engine import Engine
from osd.engine.training_pauses import TrainingPauses
from osd.records.errors import EngineUnavailableError
from osd.records.query import Request, TokenDelta
from osd.records.status import EngineStatus

T = TypeVar("T")
_log = logging.getLogger(__name__)


class EngineLoop:
    """Runs `engine.step()` while there is work.

    Args:
        engine: used by the loop's thread only, once `start()` was called.
        deliver: called on that thread with each step's deltas; it must be cheap.
    """

    def __init__(self, engine: Engine, deliver: Callable[[list[TokenDelta]], None]) -> None:
        self._engine = engine
        self._deliver = deliver
        self._commands: deque[Callable[[], None]] = deque()
        self._wake = threading.Condition()
        self._stopping = False
        self._room = TrainingPauses()
        self.changing = threading.Lock()
        """Held by a thread from preparing a replacement of the serving target or drafter until it is in place,
        so that another thread's replacement in between is not lost. Never taken by the engine's thread."""
        self._thread = threading.Thread(target=self._run, name="osd-engine", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop after the current step; queries in progress are abandoned."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join()

    def submit(self, request: Request) -> None:
        """Queue a query; raises what `Engine.submit` raises, before returning."""
        self.call(lambda engine: engine.submit(request)).result()

    def cancel(self, request_id: str) -> None:
        """Cancel a query between two steps; its last delta is delivered like any other."""
        self.call(lambda engine: self._deliver(engine.cancel(request_id)))

    def call(self, work: Callable[[Engine], T]) -> Future[T]:
        """Run something on the engine's thread between two steps, unless its future is cancelled before."""
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                self._refuse_when_stopping()
                future.set_result(work(self._engine))
            except BaseException as error:  # noqa: BLE001 - raised again to those who wait for the future
                future.set_exception(error)

        with self._wake:
            self._refuse_when_stopping()
            self._commands.append(run)
            self._wake.notify()
        return future

    def status(self) -> EngineStatus:
        """A snapshot, taken between two steps."""
        return self.call(lambda engine: engine.status()).result()

    def utilisation(self) -> float:
        """Share of the last seconds that the engine spent in steps; does not wait for the current step."""
        return self._engine.utilisation.share()

    def leave_room(self, share: float, for_s: float) -> None:
        """Pause for a share of the time while there is work, so that training can run; see `TrainingPauses.grant`."""
        self._room.grant(share, for_s)

    def _refuse_when_stopping(self) -> None:
        if self._stopping:
            raise EngineUnavailableError("the engine is stopping; try again shortly")

    def _run(self) -> None:
        try:
            self._serve()
        finally:  # however the thread ends, commands that still wait are failed
            with self._wake:
                self._stopping = True
            for command in self._commands:
                command()

    def _serve(self) -> None:
        while True:
            with self._wake:
                while not (self._commands or self._stopping or self._engine.has_work):
                    self._wake.wait()
                if self._stopping:
                    return
                commands = list(self._commands)
                self._commands.clear()
            for command in commands:
                command()
            if self._engine.has_work:
                started_s = time.monotonic()
                self._step()
                self._pause(self._room.pause_s(time.monotonic() - started_s))

    def _pause(self, pause_s: float) -> None:
        """Let others use the machine; a command ends the pause, and without work there is none."""
        if not pause_s or not self._engine.has_work:
            return
        started_s = time.monotonic()
        with self._wake:
            self._wake.wait_for(lambda: bool(self._commands) or self._stopping, timeout=pause_s)
        paused_s = time.monotonic() - started_s
        self._room.paused(paused_s)
        self._engine.counters.add("paused_seconds_total", paused_s)

    def _step(self) -> None:
        try:
            deltas = self._engine.step()
        except Exception as error:
            _log.exception("a step failed; its queries end with an error")
            deltas = self._engine.fail_all(f"internal error: {type(error).__name__}")
        if not deltas:
            return
        try:
            self._deliver(deltas)
        except Exception:
            _log.exception("deltas of %d queries were not delivered", len(deltas))
