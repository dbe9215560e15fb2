"""The supervisor actor: sees that the others live, counts their restarts, keeps what the operator wants.

Ray itself restarts a dead actor (`max_restarts=-1`). The supervisor notices it by the process id, and says so. It is
light: it never imports torch.

consumes: pings of engine and distiller
waits for: the ping interval
on failure: an actor that does not answer is counted as restarted once it answers with another process id
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

import psutil

from actors.event_log import EventLog
from osd.types import Event

_PING_INTERVAL_S = 1.0


class SupervisorActor:
    """Watches the actors it is told of."""

    def __init__(self) -> None:
        self._events = EventLog()
        self._watched: dict[str, Any] = {}
        self._pids: dict[str, int] = {}
        self._restarts: dict[str, int] = {}
        self._paused = False
        self._tasks: list[asyncio.Task[None]] = []

    async def watch(self, name: str, handle: Any) -> None:
        """Begin to watch an actor."""
        self._watched[name] = handle
        self._restarts[name] = 0
        self._tasks.append(asyncio.create_task(self._watch(name)))

    async def set_training_paused(self, paused: bool) -> None:
        """Keep the operator's wish beyond a restart of the distiller, and pass it on."""
        self._paused = paused
        if "distiller" in self._watched:
            await self._watched["distiller"].set_paused.remote(paused)

    async def training_is_paused(self) -> bool:
        """What the operator wants."""
        return self._paused

    async def restarts(self) -> dict[str, int]:
        """Actor name to number of restarts."""
        return dict(self._restarts)

    async def processes(self) -> dict[str, int]:
        """Process name to resident bytes, for the actors on this machine and for Ray's own processes here."""
        sizes = {"supervisor": psutil.Process().memory_info().rss}
        for name, pid in self._pids.items():
            if psutil.pid_exists(pid):
                sizes[name] = psutil.Process(pid).memory_info().rss
        sizes["ray"] = _ray_bytes({os.getpid(), *self._pids.values()})
        return sizes

    async def events(self, limit: int) -> list[Event]:
        """The newest events, oldest first."""
        return self._events.newest(limit)

    async def _watch(self, name: str) -> None:
        while True:
            try:
                pid = await self._watched[name].ping.remote()
            except Exception:  # noqa: BLE001 - Ray raises many kinds while an actor is away
                pid = None
            if pid is not None and pid != self._pids.get(name, pid):
                self._restarts[name] += 1
                message = f"{name} was restarted (process {self._pids[name]} -> {pid})"
                self._events.add(Event(at_s=time.time(), kind="restart", message=message, data={"actor": name}))
            if pid is not None:
                self._pids[name] = pid
            await asyncio.sleep(_PING_INTERVAL_S)


def _ray_bytes(actors: set[int]) -> int:
    """Resident bytes of Ray's own processes that belong to our session: our ancestors' children, actors left out."""
    raylet = next((p for p in psutil.Process().parents() if p.name() == "raylet"), None)
    if raylet is None:
        return 0
    family = [raylet, *raylet.children(recursive=True)]
    family += [p for p in psutil.process_iter() if p.name() == "gcs_server"]
    total = 0
    for process in family:
        try:
            total += process.memory_info().rss if process.pid not in actors else 0
        except psutil.Error:
            continue  # it ended meanwhile
    return total
