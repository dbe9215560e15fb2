"""Starts the process that compiles kernels, and waits for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from osd.kernels.cpu.compiling import store
from osd.kernels.cpu.compiling.signatures import KernelSet
from osd.records.errors import OsdError

_LOOK_S = 0.1
_STOP_S = 5.0
_TELL_S = 10.0
_ROOT = Path(__file__).parents[4]


class Build:
    """Compiles a set of kernels in a process of the lowest priority.

    Args:
        kernels: the set.
    """

    def __init__(self, kernels: KernelSet) -> None:
        self.kernels = kernels
        self._stopping = threading.Event()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - the process writes it
        path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "osd.kernels.cpu.compiling.build", kernels.label, str(os.getpid())],
            env=os.environ | {"PYTHONPATH": path},
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            start_new_session=True,  # see `build.step_back`
        )

    @property
    def pid(self) -> int:
        """The compiling process's id."""
        return self._process.pid

    def wait(self, on_progress: Callable[[str], None] = lambda stage: None) -> bool:
        """Wait until all kernels are compiled; False if `stop` was called before.

        Args:
            on_progress: called with the progress when it changes, and every ten seconds.

        Raises:
            OsdError: compilation failed; the message says why.
        """
        num_told, told_s, started_s = -1, 0.0, time.monotonic()
        while self._process.poll() is None:
            now_s, num_built = time.monotonic(), store.num_built(self.kernels)
            if num_built != num_told or now_s - told_s > _TELL_S:
                num_told, told_s = num_built, now_s
                of = f"{num_built} of {len(self.kernels.names)}"
                on_progress(f"compiling kernels for this CPU: {of} after {now_s - started_s:.0f} s")
            self._stopping.wait(_LOOK_S)
        if self._stopping.is_set():
            return False
        if self._process.returncode:
            raise OsdError(f"the kernels for this CPU were not compiled: {self._reason()}")
        return True

    def stop(self) -> None:
        """End the process if it still runs. Kernels compiled so far stay stored, and are not compiled again."""
        self._stopping.set()
        self._process.terminate()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()

    def _reason(self) -> str:
        if self._process.returncode < 0:
            return f"the process that compiles them was ended by {signal.Signals(-self._process.returncode).name}"
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"the process that compiles them ended with {self._process.returncode}"
