"""Stands for the process that compiles kernels, `osd.kernels.cpu.compiling.building.Build`."""

from __future__ import annotations

from collections.abc import Callable

from osd.kernels.cpu.compiling.signatures import KernelSet
from osd.records.errors import OsdError


class FakeBuild:
    """Has compiled everything, or failed, as soon as it is waited for."""

    def __init__(self, kernels: KernelSet, fails: bool = False) -> None:
        self.kernels, self._fails = kernels, fails

    def wait(self, on_progress: Callable[[str], None]) -> bool:
        if self._fails:
            raise OsdError("no compiler")
        on_progress("1 of 7")
        return True

    def stop(self) -> None:
        """It has ended."""
