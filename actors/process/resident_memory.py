"""The resident memory of the service's processes on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping

import psutil

_SESSION = "--session-name="
_RAY_EVERY_S = 30.0


def resident_bytes(pids: Mapping[str, int | None]) -> dict[str, int]:
    """Process name to resident bytes; processes that ended or run on other machines are left out."""
    sizes = {}
    for name, pid in pids.items():
        try:
            sizes[name] = psutil.Process(pid).memory_info().rss if pid is not None else 0
        except psutil.Error:
            continue  # it ended meanwhile, or runs on another machine
    return {name: size for name, size in sizes.items() if size}


class RayMemory:
    """`ray_bytes`, measured at most every 30 seconds: it looks at every process of the machine."""

    def __init__(
        self,
        measure: Callable[[Collection[int]], int] | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Measure by `measure` (default `ray_bytes`) and by the clock `now`, in seconds."""
        self._measure = measure or ray_bytes
        self._now = now
        self._bytes = 0
        self._until_s: float | None = None

    def resident(self, without: Collection[int]) -> int:
        """The newest measurement; one is made where the last is too old."""
        now_s = self._now()
        if self._until_s is None or now_s >= self._until_s:
            self._bytes = self._measure(without)
            self._until_s = now_s + _RAY_EVERY_S
        return self._bytes


def ray_bytes(without: Collection[int]) -> int:
    """Resident bytes of Ray's processes in the caller's Ray session, without those in `without` (the actors).

    Must be called in a Ray worker. Workers are children of the raylet; the session's other processes have its name on
    their command line.
    """
    raylet = next((process for process in psutil.Process().parents() if process.name() == "raylet"), None)
    if raylet is None:
        return 0
    session = next((part for part in raylet.cmdline() if part.startswith(_SESSION)), _SESSION).removeprefix(_SESSION)
    family = {raylet, *raylet.children(recursive=True)}
    total = 0
    for process in psutil.process_iter():
        try:
            if process.pid not in without and (process in family or any(session in part for part in process.cmdline())):
                total += process.memory_info().rss
        except psutil.Error:
            continue  # it ended meanwhile
    return total
