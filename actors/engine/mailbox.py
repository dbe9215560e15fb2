"""Mailboxes: deltas that wait for their clients. Each client has one, which its long poll empties.

A delta stays in its box until a later poll acknowledges it, so a poll's answer that was lost is sent again. Each box
has an id; a client that sees a new id knows that its queries are gone, because the engine was restarted or because
the engine took the client for dead.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import deque
from collections.abc import Callable
from itertools import islice

from osd.records.query import TokenDelta

_GONE_AFTER_S = 30.0


class Mailboxes:
    """Sorts deltas into the boxes of their clients.

    Belongs to one event loop. After `attach`, `expect` and `post` may be called from one other thread, and take effect
    in the order of their calls.

    Args:
        gone_after_s: a client that has not polled for this long counts as dead.
        clock: monotonic seconds.
    """

    def __init__(self, *, gone_after_s: float = _GONE_AFTER_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._gone_after_s, self._clock = gone_after_s, clock
        self._loop: asyncio.AbstractEventLoop | None = None
        self._boxes: dict[str, _Box] = {}
        self._box_of: dict[str, _Box] = {}
        """Request id to box, until the query's last delta is acknowledged."""

    def attach(self) -> None:
        """Use the running event loop."""
        self._loop = asyncio.get_running_loop()

    def open(self, client_id: str) -> str:
        """The id of a client's box, which is created if needed."""
        return self._open(client_id).id

    def holds(self, client_id: str, request_id: str) -> bool:
        """True from `expect` until the query's last delta is acknowledged."""
        box = self._boxes.get(client_id)
        return box is not None and self._box_of.get(request_id) is box

    def expect(self, client_id: str, request_id: str) -> None:
        """From now on, put deltas of this query into this client's box."""
        self._soon(self._expect, client_id, request_id)

    def post(self, deltas: list[TokenDelta]) -> None:
        """Deliver one step's deltas. Called on the engine's thread, so it only schedules the work on the loop."""
        if deltas:
            self._soon(self._sort, deltas)

    async def poll(
        self, client_id: str, wait_s: float, box_id: str | None, num_received: int
    ) -> tuple[str, list[TokenDelta]]:
        """A client's unacknowledged deltas, as soon as there are any; an empty list after `wait_s`.

        Args:
            client_id: the client.
            wait_s: longest wait; no wait if the client knows a box other than its present one.
            box_id: the box that the client knows.
            num_received: number of deltas received from that box so far, which this call acknowledges.

        Returns:
            (id of the client's box, its unacknowledged deltas).
        """
        box = self._open(client_id)
        if box.id == box_id:
            for request_id in box.drop(num_received):
                self._box_of.pop(request_id, None)
            await self._wait(box, wait_s)
        return box.id, list(box.deltas)

    def close(self, client_id: str) -> None:
        """Remove a client that needs no more deltas; nothing happens if it has no box."""
        if box := self._boxes.pop(client_id, None):
            for request_id in [request_id for request_id, other in self._box_of.items() if other is box]:
                del self._box_of[request_id]

    def abandoned(self) -> list[str]:
        """Remove clients that stopped polling; returns the ids of their queries."""
        latest_s = self._clock() - self._gone_after_s
        gone = {client for client, box in self._boxes.items() if not box.num_polling and box.seen_at_s < latest_s}
        boxes = [self._boxes.pop(client) for client in gone]
        queries = [request_id for request_id, box in self._box_of.items() if box in boxes]
        for request_id in queries:
            del self._box_of[request_id]
        return queries

    def _open(self, client_id: str) -> _Box:
        box = self._boxes.setdefault(client_id, _Box())
        box.seen_at_s = self._clock()
        return box

    async def _wait(self, box: _Box, wait_s: float) -> None:
        box.num_polling += 1
        try:
            async with asyncio.timeout(wait_s):
                await box.filled.wait()
        except TimeoutError:
            pass
        finally:
            box.num_polling -= 1
            box.seen_at_s = self._clock()

    def _soon(self, work: Callable[..., None], *args: object) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(work, *args)

    def _expect(self, client_id: str, request_id: str) -> None:
        self._box_of[request_id] = self._open(client_id)

    def _sort(self, deltas: list[TokenDelta]) -> None:
        for delta in deltas:
            if box := self._box_of.get(delta.request_id):
                box.deltas.append(delta)
                box.filled.set()


class _Box:
    def __init__(self) -> None:
        self.id = uuid.uuid4().hex
        self.deltas: deque[TokenDelta] = deque()
        """Unacknowledged deltas, oldest first."""
        self.filled = asyncio.Event()
        self.num_polling = 0
        self.seen_at_s = 0.0
        self._num_dropped = 0

    def drop(self, num_received: int) -> list[str]:
        """Drop deltas up to this number, counted since the box was made; returns the queries that ended in them."""
        num = max(num_received - self._num_dropped, 0)  # polls may arrive out of order
        ended = [delta.request_id for delta in islice(self.deltas, num) if delta.finish_reason is not None]
        for _ in range(num):
            self.deltas.popleft()
        self._num_dropped += num
        if not self.deltas:
            self.filled.clear()
        return ended
