"""Deltas waiting for their clients: one box a client, emptied by its long poll.

A delta stays in its box until a later poll acknowledges it, so an answer that was lost on its way is given again. A box
has an id of its own: a client that meets another id knows that its queries are gone, with their engine or because it
was thought dead.
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
    """Sorts deltas by client.

    Belongs to one event loop; `expect` and `post` may be called from any one thread once `attach` was, and take effect
    in the order of their calls.

    Args:
        gone_after_s: a client that has not polled for so long is dead.
        clock: monotonic seconds.
    """

    def __init__(self, *, gone_after_s: float = _GONE_AFTER_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._gone_after_s, self._clock = gone_after_s, clock
        self._loop: asyncio.AbstractEventLoop | None = None
        self._boxes: dict[str, _Box] = {}
        self._box_of: dict[str, _Box] = {}
        """By request id, until its last delta is acknowledged."""

    def attach(self) -> None:
        """Take the running event loop."""
        self._loop = asyncio.get_running_loop()

    def open(self, client_id: str) -> str:
        """The id of a client's box."""
        return self._open(client_id).id

    def holds(self, client_id: str, request_id: str) -> bool:
        """True from `expect` until the query's last delta is acknowledged."""
        box = self._boxes.get(client_id)
        return box is not None and self._box_of.get(request_id) is box

    def expect(self, client_id: str, request_id: str) -> None:
        """Deltas of this query, posted from now on, go to this client."""
        self._soon(self._expect, client_id, request_id)

    def post(self, deltas: list[TokenDelta]) -> None:
        """Deliver one step's deltas; called on the engine's thread, so it only hands them over."""
        if deltas:
            self._soon(self._sort, deltas)

    async def poll(
        self, client_id: str, wait_s: float, box_id: str | None, num_received: int
    ) -> tuple[str, list[TokenDelta]]:
        """Everything that is ready for a client, as soon as there is something; nothing after `wait_s`.

        Args:
            client_id: whose box.
            wait_s: longest wait; one that knows another box is told at once.
            box_id: the box that this client knows.
            num_received: the deltas it has had from that box: these are acknowledged.

        Returns:
            (the box's id, its deltas that are not acknowledged).
        """
        box = self._open(client_id)
        if box.id == box_id:
            for request_id in box.drop(num_received):
                self._box_of.pop(request_id, None)
            await self._wait(box, wait_s)
        return box.id, list(box.deltas)

    def abandoned(self) -> list[str]:
        """Let go of clients that stopped polling, because their process is gone; returns the ids of their queries."""
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
        """Not acknowledged, oldest first."""
        self.filled = asyncio.Event()
        self.num_polling = 0
        self.seen_at_s = 0.0
        self._num_dropped = 0

    def drop(self, num_received: int) -> list[str]:
        """Forget the first deltas, counted since the box was made; returns the queries that ended among them."""
        num = max(num_received - self._num_dropped, 0)  # an older poll may come late
        ended = [delta.request_id for delta in islice(self.deltas, num) if delta.finish_reason is not None]
        for _ in range(num):
            self.deltas.popleft()
        self._num_dropped += num
        if not self.deltas:
            self.filled.clear()
        return ended
