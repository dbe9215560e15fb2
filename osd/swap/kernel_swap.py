"""Replaces torch's operations by compiled kernels while queries are served.

If the kernels for this CPU are not compiled yet, the engine starts without them. Once they are, target and drafter are
built a second time, with the same weights, checks and measurements as at a start with compiled kernels; between two
steps they take over the rows of the old ones.

consumes: the process that compiles
waits for: its end
is unblocked by: `stop`
on failure: torch's operations continue to serve; an event and the log say why
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Generator, Sequence
from typing import Protocol, TypeVar

from osd.engine.engine import Engine
from osd.engine.loop import EngineLoop
from osd.machine.memory import trim_heap, use_huge_pages
from osd.models.target import Target
from osd.ports.drafter import Drafter
from osd.records.errors import OsdError, reason
from osd.records.events import Event, EventKind
from osd.speculation.calibrate import calibration

T = TypeVar("T")
_log = logging.getLogger(__name__)
Remake = Callable[[Target, Sequence[Drafter]], tuple[Target, list[Drafter]]]
"""Loads the kernels, and makes target and drafters again; the target itself where kernels do nothing for it."""


class Build(Protocol):
    """Compiles the kernels (implemented by `osd.kernels.cpu.compiling.building.Build`)."""

    def wait(self, on_progress: Callable[[str], None]) -> bool:
        """Wait until all kernels are compiled; False if it was stopped before."""
        ...

    def stop(self) -> None:
        """Stop compiling."""
        ...


class KernelSwap:
    """Lets compiled kernels take over once they are compiled.

    Args:
        build: compiles them.
        loop: the engine's loop.
        remake: builds target and drafter; called on a thread of its own.
        on_event: told of the result.
        on_progress: told of the progress of compiling, and of the result.
    """

    def __init__(
        self,
        build: Build,
        loop: EngineLoop,
        remake: Remake,
        *,
        on_event: Callable[[Event], None],
        on_progress: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._build, self._loop, self._remake = build, loop, remake
        self._on_event, self._on_progress = on_event, on_progress
        self._thread = threading.Thread(target=self._run, name="osd-kernel-swap", daemon=True)

    def start(self) -> None:
        """Start the thread that waits."""
        self._thread.start()

    def stop(self) -> None:
        """Stop compiling; a swap that has begun is completed."""
        self._build.stop()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        try:
            if self._build.wait(self._on_progress):
                self.swap()
        except Exception as error:
            _log.warning("torch's operations serve on, and are slower: %s", reason(error), exc_info=True)
            self._event("error", f"torch's operations serve on, and are slower: {reason(error)}")

    def swap(self) -> None:
        """Load the kernels, and let them take over from torch's operations.

        Raises:
            OsdError: they cannot be loaded, or give other logits than the plain model.
        """
        with self._loop.changing:
            old_target, old_drafters = self._loop.call(_serving).result()
            target, drafters = self._remake(old_target, old_drafters)
            try:
                self._put_in_place(target, drafters, old_target)
            except BaseException:
                if target is not old_target:
                    target.lm.close()
                raise
        if target is not old_target:
            old_target.lm.close()
        del old_target, old_drafters
        trim_heap()
        self._on_progress("compiled kernels took over from torch")

    def _put_in_place(self, target: Target, drafters: list[Drafter], old_target: Target) -> None:
        if target is not old_target and not target.lm.is_fused:
            raise OsdError("the kernels compiled for this CPU give other logits than the plain model")
        use_huge_pages()
        config = self._loop.call(lambda engine: engine.config).result()
        num_slots, max_length = config.engine.max_slots, config.speculation.max_length
        # A target that stays keeps its rows and its measured costs.
        verify = self._loop.call(lambda engine: engine.policy.verify).result() if target is old_target else None
        costs = self._between_steps(
            calibration(target, drafters, num_slots=num_slots, max_length=max_length, verify=verify)
        )

        def take_over(engine: Engine) -> None:
            engine.take_over(target, drafters, costs)

        self._loop.call(take_over).result()

    def _between_steps(self, work: Generator[None, None, T]) -> T:
        """Run the parts of `work` between steps on the engine's thread: timings are exact there, and delays short."""

        def go_on(engine: Engine) -> tuple[T] | None:
            try:
                next(work)
            except StopIteration as end:
                return (end.value,)
            return None

        while (done := self._loop.call(go_on).result()) is None:
            pass
        return done[0]

    def _event(self, kind: EventKind, message: str) -> None:
        self._on_event(Event(at_s=time.time(), kind=kind, message=message))
        self._on_progress(message)


def _serving(engine: Engine) -> tuple[Target, list[Drafter]]:
    return engine.target, [arm.drafter for arm in engine.policy.all_arms]
