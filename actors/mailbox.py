"""Deltas waiting for their clients: one box a client, emptied by its long poll."""

from __future__ import annotations

import asyncio
import time
from collections import deque

from osd.types import TokenDelta

_GONE_AFTER_S = 30.0


class Mailboxes:
    """Sorts deltas by client. Belongs to one event loop; `post` may be called from any thread once `attach` was."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._boxes: dict[str, _Box] = {}
        self._owner: dict[str, str] = {}
        """Request id to client id, while the query lives."""

    def attach(self) -> None:
        """Take the running event loop."""
        self._loop = asyncio.get_running_loop()

    def expect(self, client_id: str, request_id: str) -> None:
        """Deltas of this query go to this client."""
        self._owner[request_id] = client_id
        self._boxes.setdefault(client_id, _Box()).polled_at_s = time.monotonic()

    def forget(self, request_id: str) -> None:
        """The query was not taken."""
        self._owner.pop(request_id, None)

    def post(self, deltas: list[TokenDelta]) -> None:
        """Deliver one step's deltas; called on the engine's thread, so it only hands them over."""
        if deltas and self._loop is not None:
            self._loop.call_soon_threadsafe(self._sort, deltas)

    async def poll(self, client_id: str, wait_s: float) -> list[TokenDelta]:
        """Everything that is ready for a client, as soon as there is something; empty after `wait_s`."""
        box = self._boxes.setdefault(client_id, _Box())
        box.num_polling += 1
        try:
            await asyncio.wait_for(box.filled.wait(), wait_s)
        except TimeoutError:
            return []
        finally:
            box.num_polling -= 1
            box.polled_at_s = time.monotonic()
        deltas = list(box.deltas)
        box.deltas.clear()
        box.filled.clear()
        return deltas

    def abandoned(self) -> list[str]:
        """Queries of clients that stopped polling: their process is gone."""
        now_s = time.monotonic()
        gone = {
            client_id
            for client_id, box in self._boxes.items()
            if not box.num_polling and now_s - box.polled_at_s > _GONE_AFTER_S
        }
        for client_id in gone:
            del self._boxes[client_id]
        return [request_id for request_id, client_id in self._owner.items() if client_id in gone]

    def _sort(self, deltas: list[TokenDelta]) -> None:
        for delta in deltas:
            client_id = self._owner.get(delta.request_id)
            if delta.finish_reason is not None:
                self._owner.pop(delta.request_id, None)
            if client_id in self._boxes:
                box = self._boxes[client_id]
                box.deltas.append(delta)
                box.filled.set()


class _Box:
    def __init__(self) -> None:
        self.deltas: deque[TokenDelta] = deque()
        self.filled = asyncio.Event()
        self.num_polling = 0
        self.polled_at_s = time.monotonic()
